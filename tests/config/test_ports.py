"""Port specifications: every way to write one, every way to write one wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.ports import Watch, check_distinct, parse_watch

HEX = "0123456789abcdefABCDEF"

indexes = st.integers(0, 63).flatmap(lambda n: st.sampled_from([str(n), f"gpu{n}", f"GPU{n}"]))
uuids = st.uuids().flatmap(lambda u: st.integers(4, 36).map(lambda n: f"GPU-{str(u)[:n]}"))
domains = st.sampled_from(["", "0:", "0000:", "00000000:", "0001:", "10de:"])
pci = st.builds(
    lambda domain, bus, device, function: f"{domain}{bus:02x}:{device:02x}.{function}",
    domains,
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)
gpus = st.lists(st.one_of(indexes, uuids, pci), max_size=5, unique_by=str.lower)
watches = st.builds(Watch, st.integers(1, 65535), gpus.map(tuple))


@given(watches)
def test_every_watch_reads_back(watch):
    """What is written is what is read, whatever mix of names stands behind the port."""
    assert parse_watch(str(watch)) == watch


@given(st.text(alphabet="0123456789abcdefgpuGPU:.,- ", max_size=30))
def test_any_text_is_a_watch_or_a_sentence(text):
    """No text makes the parser fail in another way than with a sentence, and what it accepts reads back."""
    watch = None
    with contextlib.suppress(ValueError):
        watch = parse_watch(text)
    if watch is not None:
        assert 1 <= watch.port <= 65535
        assert parse_watch(str(watch)) == watch


@pytest.mark.parametrize(
    ("spec", "watch"),
    [
        ("8080", Watch(8080)),
        ("8080:gpu0", Watch(8080, ("gpu0",))),
        (" 8080:gpu0, gpu1 ", Watch(8080, ("gpu0", "gpu1"))),
        ("8080:0", Watch(8080, ("0",))),
        ("8080:GPU-8f3a", Watch(8080, ("GPU-8f3a",))),
        ("8080:0000:3b:00.0", Watch(8080, ("0000:3b:00.0",))),
        ("8080:00000000:3B:00.0,gpu1,af:00.0", Watch(8080, ("00000000:3B:00.0", "gpu1", "af:00.0"))),
    ],
)
def test_the_documented_forms(spec, watch):
    """Every form in the manual is understood."""
    assert parse_watch(spec) == watch


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("", "not a port number"),
        ("http:gpu0", "'http' is not a port number"),
        ("-1:gpu0", "not a port number"),
        ("８０８０:gpu0", "not a port number"),  # noqa: RUF001 - digits, but none of ours
        ("0:gpu0", "port 0 is out of range (1-65535)"),
        ("65536", "port 65536 is out of range (1-65535)"),
        ("8080:", "port 8080: a GPU is empty"),
        ("8080:gpu0,,gpu1", "port 8080: a GPU is empty"),
        ("8080:gpu0,", "port 8080: a GPU is empty"),
        ("8080:gpu0:gpu1", "'gpu0:gpu1' names no GPU"),
        ("8080:a40", "'a40' names no GPU (write gpu0"),
        ("8080:0000:3b:00.8", "names no GPU"),
        ("8080:0000:3b:00", "names no GPU"),
        ("8080:gpu0,GPU0", "GPU0 is named twice"),
        # a PCI address without a port in front of it
        ("0000:3b:00.0", "port 0000 is out of range"),
    ],
)
def test_wrong_specifications_are_explained(spec, part):
    """Each mistake has its own sentence."""
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_watch(spec)
    assert part in str(refusal.value)


def test_the_same_port_twice_is_refused():
    """Two watches on one port are a mistake, and the message shows both and the right way."""
    with pytest.raises(ValueError, match="port 8080 is given twice") as refusal:
        check_distinct([Watch(8080, ("gpu0",)), Watch(1), Watch(8080, ("gpu1",))])
    assert "8080:gpu0 and 8080:gpu1" in str(refusal.value)
