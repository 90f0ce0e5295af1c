"""Other managers of the same servers: llama-swap, Ollama, llama.cpp's own sleep and its router. One owner for each.

Who unloads a server by itself owns its deepest stage: our stages below parking are not possible there unless they are
forced. Nobody is asked to unload anything unless a stop-server stage is forced; then the manager does it, in its own
way, and loads the model again at the next request.

    llama-swap   owns a model with a `ttl`; GET /running tells. POST /api/models/unload/MODEL
    Ollama       owns its models, but not those loaded for ever (keep_alive -1); GET /api/ps. POST /api/generate with
                 keep_alive 0
    llama.cpp    sleeps by itself with --sleep-idle-seconds: observed through GET /props, which does not wake it. It
                 owns no deeper stage, but is not checkpointed before it sleeps: its timer would block on the GPU
    its router   owns nothing (it unloads only to make room); POST /models/unload
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from memscaler.daemon.servers import option, server_of
from memscaler.kernel.processes import Processes
from memscaler.kernel.scopes import own_netns
from memscaler.kernel.sock_diag import SockDiag
from memscaler.sleep.drivers.protocol import Call, Later, NotAnnounced, StageError, Target
from memscaler.sleep.drivers.talk import Answer, Door, Talk, door_of, why

LLAMA_CPP, LLAMA_SWAP, OLLAMA = "llama.cpp", "llama-swap", "Ollama"
ROUTER = "llama.cpp's router"
_FOR_EVER = dt.timedelta(days=3650)  # Ollama says year 2318 for "never"
_ROUTER_MODELS = ("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo")
_ROUTER_VARIABLES = ("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_DOCKER_REPO")


@dataclass(frozen=True, slots=True)
class Manager:
    """Who keeps a server. pid: its process. port: of the server's own that is watched, 0: it is the manager's."""

    kind: str
    pid: int
    port: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One that a manager has loaded. port: of its server, 0: not told. for_ever: it is not unloaded when it is idle."""

    name: str
    port: int = 0
    for_ever: bool = False
    asleep: bool = False


class Managers:
    """Asks them."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def of(self, server: Target, processes: Processes | None = None) -> Manager | None:
        """The nearest one above whoever listens, or that itself."""
        seen = processes or Processes.look()
        for pid in sorted(server.pids):
            above = pid
            while above:
                kind = _kind(above, seen)
                if kind and not (kind == ROUTER and above == pid and not _children(above, seen)):
                    return Manager(kind, above, server.port if above != pid else 0)
                above = seen.parent(above)
        return None

    def owner(self, server: Target, call: Call) -> str:
        """Who else brings this server down when it is idle, and why we leave that alone; "" if nobody does.

        Raise Later if a manager is there and does not say.
        """
        seen = Processes.look()
        manager = self.of(server, seen)
        if manager is None or manager.kind == ROUTER:
            return ""
        models = _concerned(self._models(manager, server, call), manager)
        if models and all(model.for_ever for model in models):
            return ""
        names = ", ".join(model.name for model in models if not model.for_ever) or "its models"
        return f"{manager.kind} unloads {names} itself when it is idle"

    def own_sleep(self, server: Target) -> str:
        """After how many seconds llama.cpp sleeps by itself; "" if it does not."""
        return _sleeps_itself(server, Processes.look())

    def asleep_by(self, server: Target, call: Call) -> str:
        """Who has put this server to sleep that is not us; "" if nobody has, or nobody tells."""
        try:
            kinds = {each.kind for each in _kinds(server, Processes.look())}
            if LLAMA_CPP in kinds:
                told = self._talk.get(door_of(server), "/props", call.until_s).document()
                return LLAMA_CPP if told.get("is_sleeping") is True else ""
            manager = self.of(server)
            if manager is not None and not manager.port and not self._models(manager, server, call):
                return manager.kind
        except (OSError, NotAnnounced, StageError):
            pass
        return ""

    def loaded(self, manager: Manager, server: Target, call: Call) -> tuple[Model, ...]:
        """What the manager has loaded behind this watch. Raise Later."""
        return _concerned(self._models(manager, server, call), manager)

    def unload(self, manager: Manager, server: Target, model: str, call: Call) -> None:
        """Ask it to unload one model. Raise Later if it does not do so."""
        door = self._door(manager, server)
        path, body = _unloading(manager.kind, model)
        try:
            answer = self._talk.ask(door, "POST", path, call.until_s, body)
        except (OSError, NotAnnounced) as error:
            raise Later(f"{manager.kind} does not unload {model}: {why(error)}") from error
        if not answer.ok:
            raise Later(f"{manager.kind} does not unload {model}: it answers with status {answer.status}")

    def _door(self, manager: Manager, server: Target) -> Door:
        """Where the manager itself listens. Raise Later."""
        if not manager.port:
            return door_of(server)
        port = _listening_port(manager.pid, without=manager.port)
        if port is None:
            raise Later(f"{manager.kind} (pid {manager.pid}) listens nowhere")
        # its port may be watched under another key, but an announcement is by addresses
        return door_of(Target(server.key, port, server.scope, pids=(manager.pid,)))

    def _models(self, manager: Manager, server: Target, call: Call) -> tuple[Model, ...]:
        path = {LLAMA_SWAP: "/running", OLLAMA: "/api/ps", ROUTER: "/models"}[manager.kind]
        try:
            answer = self._talk.get(self._door(manager, server), path, call.until_s)
        except (OSError, NotAnnounced) as error:
            raise Later(f"{manager.kind} does not say what it has loaded: {why(error)}") from error
        if not answer.ok:
            raise Later(f"{manager.kind} does not say what it has loaded: GET {path} has status {answer.status}")
        return tuple(_READERS[manager.kind](answer))


# ---- what they say ---------------------------------------------------------------------------------------------------


def _running(answer: Answer) -> Iterator[Model]:
    """llama-swap. ttl 0 is for ever; what does not tell is taken for one that will be unloaded."""
    for each in _objects(answer.document().get("running")):
        if each.get("state") in ("ready", "starting", None) and isinstance(each.get("model"), str):
            yield Model(each["model"], _port(each.get("proxy")), for_ever=each.get("ttl") == 0)


def _ps(answer: Answer) -> Iterator[Model]:
    """Ollama."""
    for each in _objects(answer.document().get("models")):
        name = each.get("model") or each.get("name")
        if isinstance(name, str):
            yield Model(name, for_ever=_is_far(each.get("expires_at")))


def _models_of_router(answer: Answer) -> Iterator[Model]:
    for each in _objects(answer.document().get("data")):
        status = each.get("status")
        value = status.get("value") if isinstance(status, dict) else None
        if value in ("loaded", "loading", "sleeping") and isinstance(each.get("id"), str):
            arguments = status.get("args") if isinstance(status, dict) else None
            words = [str(word) for word in arguments] if isinstance(arguments, list) else []
            port = option(words, "--port")
            yield Model(each["id"], int(port) if port.isdecimal() else 0, for_ever=True, asleep=value == "sleeping")


_READERS = {LLAMA_SWAP: _running, OLLAMA: _ps, ROUTER: _models_of_router}


def _objects(raw: object) -> list[dict[str, Any]]:
    return [each for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []


def _port(url: object) -> int:
    try:
        return urlsplit(url).port or 0 if isinstance(url, str) else 0
    except ValueError:
        return 0


def _is_far(text: object) -> bool:
    try:
        expires = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return False
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=dt.UTC)
    return expires - dt.datetime.now(dt.UTC) > _FOR_EVER


def _concerned(models: Sequence[Model], manager: Manager) -> tuple[Model, ...]:
    """Those behind the watched port, as far as that is told."""
    mine = tuple(model for model in models if manager.port and model.port == manager.port)
    return mine or tuple(model for model in models if not manager.port or not model.port)


def _unloading(kind: str, model: str) -> tuple[str, Mapping[str, object] | None]:
    if kind == LLAMA_SWAP:
        return f"/api/models/unload/{quote(model, safe='/')}", None
    if kind == OLLAMA:
        return "/api/generate", {"model": model, "keep_alive": 0}
    return "/models/unload", {"model": model}


# ---- who they are ----------------------------------------------------------------------------------------------------


def _kind(pid: int, processes: Processes) -> str:
    """Of a manager; "" for any other process."""
    argv = processes.argv(pid)
    found = server_of(argv, processes.comm(pid))
    if found is None:
        return ""
    if found.kind == "llama-swap":
        return LLAMA_SWAP
    if found.program == "ollama serve":
        return OLLAMA
    if found.kind == "llama.cpp" and _is_router(pid, argv, processes):
        return ROUTER
    return ""


def _is_router(pid: int, argv: Sequence[str], processes: Processes) -> bool:
    return not option(argv, *_ROUTER_MODELS) and not any(processes.variable(pid, name) for name in _ROUTER_VARIABLES)


def _children(pid: int, processes: Processes) -> bool:
    """A llama-server without a model may be one that we do not understand; with servers of its own it is a router."""
    return any(server_of(processes.argv(each)) for each in processes.descendants([pid]))


@dataclass(frozen=True, slots=True)
class _Known:
    pid: int
    kind: str


def _kinds(server: Target, processes: Processes) -> Iterator[_Known]:
    for pid in server.pids:
        found = server_of(processes.argv(pid), processes.comm(pid))
        if found is not None:
            yield _Known(pid, found.kind)


def _sleeps_itself(server: Target, processes: Processes) -> str:
    """After how many seconds llama.cpp does; "" if it does not."""
    for each in _kinds(server, processes):
        if each.kind == LLAMA_CPP:
            argv = processes.argv(each.pid)
            told = option(argv, "--sleep-idle-seconds") or processes.variable(each.pid, "LLAMA_ARG_SLEEP_IDLE_SECONDS")
            if told.isdecimal() and int(told) > 0:
                return told
    return ""


def _listening_port(pid: int, without: int) -> int | None:
    """The lowest port on which this process listens in its namespace."""
    processes = Processes.look()
    inode, mine = processes.netns(pid), processes.sockets(pid)
    if inode is None:
        return None
    diag = SockDiag() if inode == own_netns() else SockDiag(processes.path(pid, "ns", "net"), inode=inode)
    try:
        ports = [row.local_port for row in diag.listeners() if row.inode in mine]
    finally:
        diag.close()
    return min((port for port in ports if port != without), default=None)
