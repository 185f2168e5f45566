"""What every command shares: how a user's mistake is reported and how a main function is run."""

import argparse
import ast
import contextlib
import functools
import importlib.util
import logging
import math
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

EXIT_USER_ERROR = 2  # the code argparse uses too; 1 is left for "ran, and the answer is no"
# Name of threads that compile what is needed later: nothing stops them, so a command does not wait.
COMPILING = "compiling"
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost, run the command again


class UserError(Exception):
    """A mistake the user can mend: says what was found, what was expected and what to do.

    Commands print the message alone, without a traceback, and exit with code 2.
    """


@contextlib.contextmanager
def saying_when_interrupted(text: str) -> Iterator[None]:
    """Ctrl-C inside ends the command with this line, as it does otherwise with none."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None


class Interrupted(Exception):  # noqa: N818  (no error)
    """Stopped on request with everything saved; the same command resumes."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: …)" to the help of flags that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default in (None, ""):
            return action.help
        return super()._get_help_string(action)


def brief(error: BaseException) -> str:
    """An error of another library in one line: 'ValueError: the first line of its message'."""
    lines = [line[:500] for line in str(error).strip().splitlines()]
    return ": ".join([type(error).__name__, *lines[:1]])


def size(text: str) -> int:
    """A flag's number of bytes: '5GB' -> 5,000,000,000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 5GB")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()])


def at_least(least: int) -> Callable[[str], int]:
    """Parses a flag's whole number, from `least` to what an int32 holds."""
    most = 2**31 - 1

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} to {most}")
        return int(text)

    return parse


def number(text: str) -> float:
    """Parses a flag's number; inf is one, NaN is none, since all comparisons with it are false."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines as they come, until whoever reads them has enough, as in `… | head`."""
    for line in lines:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            _discard_stdout()
            return


def commands(package: pathlib.Path) -> list[str]:
    """The commands of a package as lines: the modules with a function `cli`, and what they do."""
    found = {}
    for path in sorted(package.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "cli" for node in tree.body):
            paragraph = (ast.get_docstring(tree) or "").split("\n\n")[0]
            found[path.stem] = " ".join(paragraph.removeprefix("Command: ").split())
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {text}" for name, text in found.items()]
    return [f"usage: python -m {package.name}.COMMAND --help", "", *lines]


@functools.cache
def use_patient_buckets() -> None:
    """Has gs:// read and written by `bert_jax.buckets`, which the first such path imports."""
    import fsspec  # a tenth of a second, which runs without a bucket need not wait

    needs = "paths on gs:// need gcsfs: pip install 'bert_jax[gcs]'"
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, "bert_jax.buckets.Buckets", True, needs)
    # What fails there comes as an exception too, and is not logged with a traceback at each try.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    logging.getLogger("fsspec").setLevel(logging.WARNING)
    sys.unraisablehook = _drop_late_answers


def _drop_late_answers(unraisable: "sys.UnraisableHookArgs") -> None:
    """What `sys.unraisablehook` is on gs://: silent about answers to a closed event loop.

    Orbax closes its loop at the first array that TensorStore cannot read or write; each of the
    others that ends later would print a traceback beside the one message that counts.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def prepare_buckets(argv: Sequence[str]) -> None:
    """`use_patient_buckets` where a command line names one: in each process of the command.

    Raises:
      UserError: gs:/ with one slash, which would be a local folder of that name.
    """
    for argument in argv:
        if re.search(r"(?:^|[=,])gs:/?(?!/)", argument.replace("gs://", "")):
            raise UserError(f"{argument}: expected gs://BUCKET/PATH, with two slashes")
    if any("gs://" in argument for argument in argv):
        use_patient_buckets()


def _buckets_in(texts: Iterable[str]) -> set[str]:
    """The names in all that begins with gs://."""
    return {name for text in texts for name in re.findall(r"gs://([^/\s,:;)]+)", text)}


def _with_flags(message: str, argv: Sequence[str]) -> str:
    """A message about a bucket, with the flags that name this bucket: '… (--workdir=gs://b/run)'."""
    buckets = _buckets_in([message])
    flags = [argument for argument in argv if _buckets_in([argument]) & buckets]
    return message if not flags or "--" in message else f"{message} ({', '.join(flags)})"


def _foreseen(error: BaseException | None, argv: Sequence[str]) -> str:
    """The message about a mistake of the user's that reached another library; "" if it is none.

    Those are a `UserError` that it wrapped, and what a store answers to TensorStore and the like:
    401, 403 or 404.
    """
    answers = {
        r"\b40[13]\b|permission.?denied|forbidden": "no permission",
        r"\b404\b|not.?found": "nothing there",
    }
    while error is not None:
        text = brief(error)
        if isinstance(error, UserError) or (isinstance(error, ImportError) and "gs://" in text):
            return str(error)
        for bucket in sorted(_buckets_in([text, *argv])):
            for pattern, meaning in answers.items():
                if bucket in text and re.search(pattern, text, re.IGNORECASE):
                    return f"gs://{bucket}: {meaning} ({text})"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def outcome(error: BaseException, argv: Sequence[str]) -> tuple[str, int]:
    """What a command says that ends with `error`, and its exit code.

    A traceback is for what nothing foresaw.
    """
    if isinstance(error, Interrupted):
        return str(error), EXIT_INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        return str(error), 130
    if message := str(error) if isinstance(error, UserError) else _foreseen(error, argv):
        return f"error: {_with_flags(message, argv)}", EXIT_USER_ERROR
    if isinstance(error, OSError):
        return f"error: {brief(error)} (--debug shows where)", 1
    return "".join(traceback.format_exception(error)).rstrip(), 1


def _has_libtpu_alone(root: pathlib.Path = pathlib.Path("/")) -> bool:
    """Whether the `tpu` extra is installed on a machine without an accelerator, as for planning."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    devices = ("dev/accel*", "dev/vfio/[0-9]*", "dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
    if any(any(root.glob(pattern)) for pattern in devices):
        return False
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    return not any(path.read_text().strip() == "0x1ae0" for path in vendors)  # Google's


class _Log(logging.Handler):
    """Messages on standard error, above a live line if there is one (bert_jax/screen.py)."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if tqdm := sys.modules.get("tqdm"):  # else there is no such line
                tqdm.tqdm.write(self.format(record), file=sys.stderr)
            else:
                print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as logging's own handlers: a message is no reason to end
            self.handleError(record)


def _discard_stdout() -> None:
    """Whoever read standard output is gone: what is still written to it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Runs `main(argv)`, turns errors into one line on stderr, and exits with a code.

    Besides `UserError` those are errors of the operating system (a full disk, a forbidden file)
    that nothing foresaw: exit code 1, since running the same command again may help. With --debug
    they keep their traceback.
    """
    argv = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(argv) < len(sys.argv) - 1
    code: int | str | None
    # Compiled programs are kept between runs: resuming, or a second run, starts in seconds.
    cache = pathlib.Path.home() / ".cache" / "bert_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    if jax := sys.modules.get("jax"):  # imported before, by a benchmark: it has read it already
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    if not os.environ.get("JAX_PLATFORMS") and _has_libtpu_alone():
        # libtpu would look for a TPU for seconds, and print what it did not find.
        os.environ["JAX_PLATFORMS"] = "cpu"
        if jax:
            jax.config.update("jax_platforms", "cpu")
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_Log()], force=True)
    # Orbax and absl report every file they touch at INFO: only their warnings are for the user.
    for noisy in ("absl", "orbax", "jax", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        prepare_buckets(argv)
        code = main(argv)
    except SystemExit as ended:  # argparse: --help, or a flag that there is not
        code = ended.code
    except BrokenPipeError:  # whoever read the output has enough, as in `… | head`
        _discard_stdout()
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, Interrupted | KeyboardInterrupt):
            raise
        message, code = outcome(error, argv)
        if message:
            print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    # Not waited for: what compiles for later, and what is left of a save that failed.
    is_compiling = any(thread.name == COMPILING for thread in threads)
    has_failed = code not in (0, None, EXIT_INTERRUPTED)
    if is_compiling or (has_failed and not all(thread.daemon for thread in threads)):
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(has_failed))
    sys.exit(code or 0)
