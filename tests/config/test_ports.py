"""Port specifications: every way to write one, every way to write one wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.ports import Watch, check_distinct, check_reads_back, parse_scope, parse_watch
from memscaler.core.watch import HOST, SCOPE_KINDS, Scope

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
words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
units = st.builds(
    "{}{}{}".format, words, st.sampled_from(["", "@a", "@a:1", ":b"]), st.sampled_from([".service", ".scope"])
)
paths = st.lists(words, min_size=1, max_size=3)
netns = st.builds(
    lambda parts, tail: "/" + "/".join(parts) + tail, paths, st.sampled_from(["", "@b", ":web@x", ":0/ns", ",c"])
)
scopes = st.one_of(
    st.just(HOST),
    st.builds(Scope, st.just("pid"), st.integers(1, 4194304).map(str)),
    st.builds(Scope, st.just("container"), words),
    st.builds(Scope, st.just("unit"), units),
    st.builds(Scope, st.just("netns"), st.one_of(netns, words)),
)
watches = st.builds(Watch, st.integers(1, 65535), gpus.map(tuple), scopes)


@given(watches)
def test_every_watch_reads_back(watch):
    """What is written is what is read, whatever mix of names stands before and behind the colons."""
    assert parse_watch(str(watch)) == watch
    check_reads_back(watch)


def read(text):
    """The watch, or None where it is refused with a sentence."""
    with contextlib.suppress(ValueError):
        return parse_watch(text)
    return None


@given(st.text(alphabet="0123456789abcdefgpuGPU:.,- ", max_size=30))
def test_any_text_is_a_watch_or_a_sentence(text):
    """No text makes the parser fail in another way than with a sentence, and what it accepts reads back."""
    watch = read(text)
    if watch is not None:
        assert 1 <= watch.port <= 65535
        assert parse_watch(str(watch)) == watch


@given(
    st.sampled_from(["host", *SCOPE_KINDS, "docker", ""]),
    st.text(alphabet="0123abgpu/:.,@-\\\n \x00é\udc80", max_size=20),
)
def test_any_scope_is_a_watch_or_a_sentence(kind, text):
    """The same behind an "@"; and no name that is accepted could break a line, a path or a list parted by blanks."""
    watch = read(f"80@{kind}:{text}")
    if watch is not None:
        assert parse_watch(str(watch)) == watch
        assert str(watch).isprintable()
        assert " " not in watch.scope.name
        assert ".." not in watch.scope.name.split("/")


@given(st.sampled_from(SCOPE_KINDS), st.text(alphabet="0123ab/:.,@", max_size=12), gpus)
def test_what_the_file_accepts_reads_back(kind, name, gpus):
    """The file has scope and GPUs apart; only what is the same watch as one word gets through."""
    with contextlib.suppress(ValueError):
        watch = Watch(80, tuple(gpus), parse_scope(f"{kind}:{name}", 80))
        check_reads_back(watch)
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
        ("8080@host", Watch(8080)),
        ("8080@host:gpu0", Watch(8080, ("gpu0",))),
        ("8080@pid:1234", Watch(8080, (), Scope("pid", "1234"))),
        ("8080@pid:0012:0", Watch(8080, ("0",), Scope("pid", "12"))),
        ("8080@container:name", Watch(8080, (), Scope("container", "name"))),
        ("8080@container:gpu0", Watch(8080, (), Scope("container", "gpu0"))),
        ("8080@container:web:gpu0, gpu1", Watch(8080, ("gpu0", "gpu1"), Scope("container", "web"))),
        ("8080@unit:llama@a.service", Watch(8080, (), Scope("unit", "llama@a.service"))),
        ("8080@unit:llama@a:gpu0", Watch(8080, ("gpu0",), Scope("unit", "llama@a.service"))),
        ("8080@unit:a:b.service:af:00.0", Watch(8080, ("af:00.0",), Scope("unit", "a:b.service"))),
        ("8080@unit:llama.v2", Watch(8080, (), Scope("unit", "llama.v2.service"))),
        ("8080@netns:/run/netns/a:gpu0", Watch(8080, ("gpu0",), Scope("netns", "/run/netns/a"))),
        ("8080@netns:a", Watch(8080, (), Scope("netns", "a"))),
        ("8080@netns:a:b@c:gpu0", Watch(8080, ("gpu0",), Scope("netns", "a:b@c"))),
        ("8080@netns:gpu1,b:web", Watch(8080, (), Scope("netns", "gpu1,b:web"))),
        ("8080@netns:/run//a:b@c:0000:3b:00.0,1", Watch(8080, ("0000:3b:00.0", "1"), Scope("netns", "/run/a:b@c"))),
        ("8080@netns:/run/a:web", Watch(8080, (), Scope("netns", "/run/a:web"))),
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
        ("@unit:x", "'' is not a port number"),
        ("8080:gpu0@unit:x", "has its GPUs before the scope (write 8080@unit:x:gpu0)"),
        ("8080@", "port 8080: '' is no scope (write KIND:NAME, as in 8080@container:web; kinds are netns, pid, "),
        ("8080@:gpu0", "':gpu0' is no scope (write KIND:NAME"),
        ("8080@web", "'web' is no scope (write KIND:NAME"),
        ("8080@gpu0", "'gpu0' is no scope (GPUs stand behind a colon: 8080:gpu0)"),
        ("8080@/run/netns/a", "(did you mean 'netns:/run/netns/a'?)"),
        (
            "8080@docker:x",
            "'docker' is no kind of scope (did you mean 'container'? There are netns, pid, unit, container",
        ),
        ("8080@Container:x", "did you mean 'container'?"),
        ("8080@kontainer:x", "did you mean 'container'?"),
        ("8080@service:x", "did you mean 'unit'?"),
        ("8080@host:x", "port 8080: 'x' names no GPU"),
        ("8080@host:", "port 8080: a GPU is empty"),
        ("8080@container", "'container' lacks a name (write container:web)"),
        ("8080@netns:", "'netns:' lacks a name (write netns:/run/netns/a or netns:a)"),
        ("8080@netns::gpu0", "'' is no network namespace"),
        ("8080@netns:a:", "port 8080@netns:a: a GPU is empty (write 8080@netns:a:gpu0 or 8080@netns:a:gpu0,gpu1)"),
        ("8080@netns:a:gup0", "'gup0' names no GPU"),
        ("8080@netns:a:gpu", "'gpu' names no GPU"),
        ("8080@netns:a:gpu0,gup1", "'gup1' names no GPU"),
        ("8080@netns:a:gpu0:gpu1", "'gpu0:gpu1' names no GPU"),
        ("8080@netns:a:0000:3b:00.8", "'0000:3b:00.8' names no GPU"),
        ("8080@netns:a:gpu0,gpu0", "gpu0 is named twice"),
        ("8080@netns:run/a", "'run/a' is no network namespace (write a path from / on, or a name of `ip netns`)"),
        ("8080@netns:/", "'/' is no network namespace"),
        ("8080@netns:/run/a/", "'/run/a/' is no network namespace"),
        ("8080@netns:/run/../a", ". and .. lead elsewhere"),
        ("8080@netns:..", ". and .. lead elsewhere"),
        ("8080@netns:my ns", "has blanks or control characters"),
        ("8080@netns:a\nb", "'a\\nb' is no name of a network namespace: it has blanks or control characters"),
        ("8080@pid:abc", "'abc' is no process id (1-4194304)"),
        ("8080@pid:abc:gpu0", "'abc' is no process id"),
        ("8080@pid:0", "'0' is no process id"),
        ("8080@pid:4194305", "'4194305' is no process id"),
        ("8080@pid:-1", "'-1' is no process id"),
        ("8080@pid:12:gup0", "port 8080@pid:12: 'gup0' names no GPU"),
        ("8080@container:web:gup0", "port 8080@container:web: 'gup0' names no GPU"),
        ("8080@container:a/b", "'a/b' is no name or id of a container (letters, digits and _ . -)"),
        ("8080@container:..", "'..' is no name or id of a container"),
        ("8080@container:a\tb:gpu0", "'a\\tb' is no name or id of a container"),
        ("8080@unit:a/b.service", "'a/b.service' is no name of a systemd unit"),
        ("8080@unit:../x", "is no name of a systemd unit"),
        ("8080@unit:a b.service", "is no name of a systemd unit"),
        ("8080@unit:llama@.service", "'llama@.service' is a template (name an instance, as in llama@a.service)"),
        ("8080@unit:llama@", "'llama@' is a template"),
        ("8080@unit:llama.socket", "'llama.socket' is a unit without processes (name a .service, .scope, .slice)"),
        ("8080@unit:llama.service:0000:3b:00.8", "port 8080@unit:llama.service: '0000:3b:00.8' names no GPU"),
        ("8080@unit:llama:web", "'web' names no GPU"),
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


def test_one_port_in_several_places():
    """The same port in another namespace is another watch; twice in the same one is a mistake that shows the place."""
    web, other = Scope("container", "web"), Scope("container", "other")
    check_distinct([Watch(8080), Watch(8080, (), web), Watch(8080, (), other), Watch(8081, (), web)])
    with pytest.raises(ValueError, match="port 8080@container:web is given twice") as refusal:
        check_distinct([Watch(8080, ("gpu0",), web), Watch(8080, ("gpu1",), web)])
    assert "as in 8080@container:web:gpu0,gpu1" in str(refusal.value)


def test_a_scope_for_the_file():
    """The file's scope is the flag's without the GPUs; those have a key of their own."""
    assert parse_scope(" container:web ", 80) == Scope("container", "web")
    assert parse_scope("host", 80) == HOST
    with pytest.raises(ValueError, match=r"names GPUs \(write them as gpus = \[\"gpu0\", \"1\"\]\)"):
        parse_scope("container:web:gpu0,1", 80)
    with pytest.raises(ValueError, match="names GPUs"):
        parse_scope("container:web:gup0", 80)


def test_a_name_that_would_swallow_a_gpu():
    """A watch that another one's word would mean is refused, with what the word means."""
    with pytest.raises(ValueError, match=r"reads as 3b:00:00\.0 of netns:/run/a \(give the namespace a name without"):
        check_reads_back(Watch(80, ("00:00.0",), Scope("netns", "/run/a:3b")))
