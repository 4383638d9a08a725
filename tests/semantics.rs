//! Each paragraph of spec/npkfs-semantics.md is a test: every title in bold there is the name of one, or the beginning of
//! such a name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Titles whose tests are called otherwise.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("commits_are_seen_at_once", "commits_of_others_are_what_the_next_open_sees"),
    ("writes_in_place_by_others_are_seen_within_a_second", "writes_in_place_by_others_are_found"),
    ("sigterm_leaves_no_mountpoint_behind", "a_signal_leaves_what_is_not_whole_in_lost_and_found"),
    (
        "small_arrays_are_decoded_when_opened_large_ones_when_opened_after_much_was_read_of_them",
        "small_arrays_are_decoded_when_opened_and_large_ones_when_opened_after_much_was_read",
    ),
    ("what_a_killed_process_leaves_is_removed", "what_a_killed_process_leaves_is_named_and_removed"),
    (
        "ends_the_mount_of_a_stopped_process_and_what_waits_for_it",
        "force_ends_the_mount_of_a_stopped_process_and_what_waits_for_it",
    ),
];

fn test_names(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            test_names(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let found =
                text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
            names.extend(found.map(str::to_owned));
        }
    }
}

fn slug(title: &str) -> String {
    let kept = title.to_lowercase().replace('\'', "");
    let words = kept.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

#[test]
fn each_paragraph_is_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("spec/npkfs-semantics.md")).unwrap();
    let titles: Vec<String> = text.split("**").skip(1).step_by(2).map(slug).collect();
    assert!(titles.len() > 100, "{titles:?}");
    let mut names = BTreeSet::new();
    test_names(&root.join("tests"), &mut names);
    let has_test = |title: &String| {
        let other = OTHER_NAMES.iter().find(|(of, _)| of == title).map(|(_, name)| *name);
        match other {
            Some(name) => names.contains(name),
            // Or of a paragraph whose test says it in fewer words.
            None => names.iter().any(|name| {
                name.starts_with(title.as_str()) || name.len() > 20 && title.starts_with(name.as_str())
            }),
        }
    };
    let missing: Vec<&String> = titles.iter().filter(|title| *title != "terms" && !has_test(title)).collect();
    assert!(missing.is_empty(), "no test is named after these paragraphs: {missing:#?}");
    for (title, _) in OTHER_NAMES {
        assert!(titles.iter().any(|of| of == title), "no paragraph is called {title} any more");
    }
}
