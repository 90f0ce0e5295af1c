"""The words of `memscaler serve` as people type them who know llama-server: its names for our options are ours, too."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from memscaler.config.near import nearest
from memscaler.core.errors import UsageError

OF_PLAN = {"--slots": "--parallel", "--batch": "--n-batch", "--ubatch": "--n-ubatch"}  # what `memscaler plan` says
NO_DOWNLOAD = "download it first, for example: hf download REPOSITORY FILE.gguf --local-dir ."
DOWNLOADS = ("-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "-dr", "--docker-repo")


def translated(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """With our names. options: ours, and whether they take a value. Raise UsageError for what is none of ours."""
    made, left = [], list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if len(name) > 1 and name.startswith("-") and name not in options:
            name = _ours(name, [value] if equals else left, options)
        made.append(name + equals + value)
        if options.get(name) and not equals and left:
            made.append(left.pop(0))
    return made


def _ours(name: str, behind: Sequence[str], options: Mapping[str, bool]) -> str:
    """What we call it. behind: the words behind it."""
    from memscaler.servers import flags, serving

    flag = flags.BY_NAME.get(flags.spelled(OF_PLAN.get(name, name)))
    own = OF_PLAN.get(name, "") if flag is None or name == "--slots" else serving.own_option(flag)
    if own:
        return own
    if flag is not None:
        takes = flag.read is not None and flag.bare != "" and behind and not behind[0].startswith("-")
        moved = shlex.join([name, *behind[:1]] if takes else [name])
        raise UsageError(f"{name} is llama-server's, and goes behind --", hint=f"memscaler serve ... -- {moved}")
    if name in DOWNLOADS:
        raise UsageError(f"{name}: serve takes a model that is here, and downloads none", hint=NO_DOWNLOAD)
    if name[:2] in options and not name.startswith("--"):  # -c4096
        return name
    near = nearest(name, options, likely=0.8)
    hint = f"did you mean {near}?" if near else f"if it is llama-server's: memscaler serve ... -- {name}"
    raise UsageError(f"no such option: {name}", hint=hint)
