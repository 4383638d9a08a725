"""How a store shows itself."""

import html.parser

import numpy as np

A = np.arange(12.0).reshape(4, 3)


class Text(html.parser.HTMLParser):
    """The tags of a page, and the texts of its cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_repr_of_open_and_closed_stores(numpack, path):
    npk = numpack.NumPack(path)
    assert repr(npk) == f"NumPack({path}, status=closed)"
    with npk:
        npk.save({"a": A})
        assert repr(npk) == f"NumPack({path}, arrays=1, backend={npk.backend_type})"
    assert repr(npk) == str(npk) == f"NumPack({path}, status=closed)"


def test_html_lists_the_arrays(npk, path):
    npk.save({"grid": A, "0-d": np.array(1), "big": np.zeros(3 << 17)})
    npk.save({"small": A}, compress=3)
    page = Text(npk._repr_html_())
    texts = page.texts
    assert texts[0] == repr(npk)
    assert texts[1:7] == ["name", "shape", "dtype", "size", "stored", "codec"]
    assert texts[7:12] == ["grid", "4 x 3", "Float64", "96 B", "96 B"]
    assert "scalar" in texts and "3 MiB" in texts and any("level 3" in text for text in texts)


def test_html_is_escaped(npk):
    name = "<script>alert('&')</script>"
    npk.save({name: np.zeros(2, [("<b>", "f4")])})
    page = Text(npk._repr_html_())
    assert page.tags <= {"div", "code", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert name in page.texts


def test_html_of_many_arrays_is_short(npk):
    npk.save({f"a{n}": np.zeros(1) for n in range(300)})
    page = Text(npk._repr_html_())
    assert "and 200 more" in page.texts and "a99" in page.texts and "a100" not in page.texts


def test_html_of_a_closed_and_an_empty_store(npk):
    assert Text(npk._repr_html_()).texts == [repr(npk)]
    npk.close()
    assert Text(npk._repr_html_()).texts == [repr(npk)]


def test_io_stats(npk):
    assert npk.get_io_stats() == {"backend_type": npk.backend_type, "stats_available": False}
