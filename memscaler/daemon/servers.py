"""What a process is, by its command line: a server of language models, or a helper that hands connections on.

Only the program itself counts, not what talks about it: in `sh -c "llama-server ..."`, `docker run ... vllm serve` and
`vim llama-server.log` the first word is another one, and what they start is a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Arguments = Sequence[str]


@dataclass(frozen=True, slots=True)
class Server:
    """kind: which software. program: what people call it. port: that of its clients, if it has other listeners too."""

    kind: str
    program: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """One way a server is started. default_port: of those that listen for their own workers as well."""

    kind: str
    program: str
    matches: Callable[[str, Arguments], bool]
    default_port: int | None = None


def _called(*names: str) -> Callable[[str, Arguments], bool]:
    return lambda name, _: name in names


def _command(name: str, *commands: str) -> Callable[[str, Arguments], bool]:
    return lambda called, arguments: called == name and bool(arguments) and arguments[0] in commands


def _title(*beginnings: str) -> Callable[[str, Arguments], bool]:
    return lambda name, _: name.startswith(beginnings)


def _old_server(name: str, arguments: Arguments) -> bool:
    return name == "server" and option(arguments, "-m", "--model").endswith(".gguf")


def _llamafile(name: str, arguments: Arguments) -> bool:
    return (name == "llamafile" or name.endswith(".llamafile")) and "--server" in arguments


# A native program by its name, a Python one as "-m MODULE" or "python SCRIPT", a title as it is.
_FORMS = (
    # llama.cpp: tools/server. In router mode the children are the same binary with ports of their own
    # (server-models.cpp); Ollama's newer releases start it too.
    _Form("llama.cpp", "llama-server", _called("llama-server")),
    # llama.cpp: app/llama.cpp, one binary for all tools (and its router's children: LLAMA_APP_CMD).
    _Form("llama.cpp", "llama serve", _command("llama", "serve")),
    # llama.cpp before June 2024 (#7809) called it "server", which says nothing without a model.
    _Form("llama.cpp", "server", _old_server),
    # llamafile: the model and the server in one file, run directly or by its loader (ape).
    _Form("llama.cpp", "llamafile", _llamafile),
    # llama-cpp-python: docs, "OpenAI Compatible Web Server".
    _Form("llama.cpp", "llama_cpp.server", _called("-m llama_cpp.server", "-m llama_cpp.server.__main__")),
    # llama-swap: one binary in Go; it starts the servers.
    _Form("llama-swap", "llama-swap", _called("llama-swap")),
    # Ollama: cmd/cmd.go ("start" is an alias) and llm/server.go, which starts `ollama runner [...] --port N` per model.
    _Form("ollama", "ollama serve", _command("ollama", "serve", "start")),
    _Form("ollama", "ollama runner", _command("ollama", "runner")),
    # Ollama until early 2025: runners of this name, unpacked below /tmp.
    _Form("ollama", "ollama_llama_server", _called("ollama_llama_server")),
    # vLLM: entrypoints/cli/serve.py, a console script; the ports beside 8000 are for its workers.
    _Form("vllm", "vllm serve", _command("python vllm", "serve"), 8000),
    _Form("vllm", "vllm serve", _command("-m vllm.entrypoints.cli.main", "serve"), 8000),
    # vLLM: the way before `vllm serve`, and the demonstration server beside it.
    _Form(
        "vllm",
        "vllm api_server",
        _called("-m vllm.entrypoints.openai.api_server", "-m vllm.entrypoints.api_server"),
        8000,
    ),
    # vLLM: with --api-server-count several processes share the socket, which call themselves so (utils/system_utils.py:
    # set_process_title). Those called VLLM::EngineCore or VLLM::Worker have the GPU, but no clients.
    _Form("vllm", "vllm serve", _title("VLLM::APIServer")),
    # SGLang: launch_server.py; `sglang serve` since 0.5.
    _Form("sglang", "sglang launch_server", _called("-m sglang.launch_server"), 30000),
    _Form("sglang", "sglang serve", _command("python sglang", "serve"), 30000),
    _Form("sglang", "sglang serve", _command("-m sglang.cli.main", "serve"), 30000),
    # SGLang: --tokenizer-worker-num shares the socket among these (managers/multi_tokenizer_mixin.py).
    # sglang::scheduler and sglang::detokenizer have no clients.
    _Form("sglang", "sglang launch_server", _title("sglang::tokenizer_worker")),
)

# The name of the executed file tells these where somebody has given them another first argument; 15 bytes at most.
_BY_COMM = {
    "llama-server": Server("llama.cpp", "llama-server"),
    "llama-swap": Server("llama-swap", "llama-swap"),
    "ollama_llama_se": Server("ollama", "ollama_llama_server"),
}

# Who listens on a port of the host for a container behind it, and passes every connection on: podman and Docker without
# root, podman's machine, Incus and LXD.
_RELAYS = frozenset(
    {
        "rootlessport",
        "rootlessport-child",
        "containers-rootlessport",
        "containers-rootlessport-child",
        "rootlesskit",
        "pasta",
        "pasta.avx2",
        "passt",
        "passt.avx2",
        "slirp4netns",
        "gvproxy",
    }
)
# Who listens there while most connections are rewritten before they get there (DNAT): Docker's helper for what comes
# from the host itself, and podman's monitor, which only reserves the port.
_BYPASSED = frozenset({"docker-proxy", "conmon"})

_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*t?")
_LOADER = re.compile(r"ape|\.ape-[0-9.]+")
_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_SCRIPTS = {
    "vllm/entrypoints/openai/api_server.py": "-m vllm.entrypoints.openai.api_server",
    "vllm/entrypoints/api_server.py": "-m vllm.entrypoints.api_server",
    "sglang/launch_server.py": "-m sglang.launch_server",
    "llama_cpp/server/__main__.py": "-m llama_cpp.server",
}


def server_of(argv: Sequence[str], comm: str = "") -> Server | None:
    """Which server a process with this command line is; None if it is none that we know."""
    if not argv:
        return None
    name, arguments = _program(argv)
    for form in _FORMS:
        if form.matches(name, arguments):
            return Server(form.kind, form.program, _port(arguments, form.default_port))
    return _BY_COMM.get(comm)


@dataclass(frozen=True, slots=True)
class Forwarder:
    """A helper that listens for a container. bypassed: connections reach the container without it."""

    program: str
    bypassed: bool


def forwarder_of(argv: Sequence[str]) -> Forwarder | None:
    """Which helper a process with this command line is; None if it is none."""
    name = argv[0].rpartition("/")[2] if argv else ""
    if name in _BYPASSED or name in _RELAYS:
        return Forwarder(name, name in _BYPASSED)
    return (
        Forwarder(f"{name} forkproxy", bypassed=False)
        if name in ("lxd", "incusd") and "forkproxy" in argv[1:2]
        else None
    )


def option(argv: Sequence[str], *names: str) -> str:
    """The value of the last of these options: "--port 1" or "--port=1"; "" if there is none."""
    found = ""
    for at, word in enumerate(argv):
        if word in names and at + 1 < len(argv):
            found = argv[at + 1]
        elif word.partition("=")[0] in names and "=" in word:
            found = word.partition("=")[2]
    return found


def _port(arguments: Arguments, default: int | None) -> int | None:
    stated = option(arguments, "--port")
    return int(stated) if default and re.fullmatch("[0-9]{1,5}", stated) else default


def _program(argv: Sequence[str]) -> tuple[str, Arguments]:
    """The program's name and its arguments: of a Python program those behind the interpreter's own."""
    name = argv[0].rpartition("/")[2] if "::" not in argv[0] else argv[0]
    if _LOADER.fullmatch(name) and len(argv) > 1:
        return argv[1].rpartition("/")[2], argv[2:]
    return _python(argv[1:]) if _PYTHON.fullmatch(name) else (name, argv[1:])


def _python(words: Arguments) -> tuple[str, Arguments]:
    """What Python runs; its command line: https://docs.python.org/3/using/cmdline.html."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        word = words[at]
        if word in _WITH_VALUE:
            at += 1
        elif not word.startswith(("--", "-W", "-X")):
            # letters may be joined: -Im MODULE, -uc COMMAND; behind m or c the rest of the word is its value
            letter = re.search("[cm]", word)
            if word == "-" or (letter and letter[0] == "c"):
                return "", ()
            if letter:
                joined = word[letter.end() :]
                module = joined or next(iter(words[at + 1 :]), "")
                return f"-m {module}", words[at + (1 if joined else 2) :]
        at += 1
    if at == len(words):
        return "", ()
    script = words[at]
    known = next((module for path, module in _SCRIPTS.items() if f"/{script}".endswith(f"/{path}")), None)
    return known or f"python {script.rpartition('/')[2]}", words[at + 1 :]
