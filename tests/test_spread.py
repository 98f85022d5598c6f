"""The order of the tests over several processes: by processes that only say what they were sent, and once by real ones."""

import json
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.harness import HANG_S
from tests.spread import Running, Spread

pytest_plugins = ["pytester"]


class _Process:
    """What a scheduler knows of a process. It runs a test once it knows what comes next, as those of pytest-xdist do."""

    gateway = SimpleNamespace(id="a process")
    workerinput: Final = {"testrunuid": "this run"}

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def may_run(self) -> bool:
        return len(self.sent) > (0 if self.shutting_down else 1)


def spread(processes: int, tests: list[str], seed: int, crash_in: str = "") -> list[tuple[int, str]]:
    """Which process ran which test, in the order in which they ended; who is next of those that may is by `seed`.

    The process that comes to `crash_in` is gone.
    """
    made = [_Process() for _ in range(processes)]
    config = SimpleNamespace(
        getvalue=lambda _: [f"{processes}*popen"],
        option=SimpleNamespace(),
        cache=SimpleNamespace(get=lambda *_: ["this run", [name for name in tests if "measured" in name]]),
    )
    scheduler = Spread(config)  # type: ignore[arg-type]
    for process in made:
        scheduler.add_node(process)
        scheduler.add_node_collection(process, tests)
    scheduler.schedule()
    ran, left = [], list(made)
    while left:
        if scheduler.tests_finished:  # as pytest-xdist does then
            for each in left:
                each.shutdown()
        able = [each for each in left if each.may_run or (each.shutting_down and not each.sent)]
        assert able, "every process waits to be told what comes next"
        process = able[seed % len(able)]
        seed = seed * 6_364_136_223_846_793_005 % 2**64 >> 1  # MMIX, by Knuth: any that differs does
        if not process.sent:
            left.remove(process)
            if process in scheduler.nodes:
                assert scheduler.remove_node(process) is None
        elif tests[process.sent[0]] == crash_in:
            left.remove(process)
            assert scheduler.remove_node(process) == crash_in
        else:
            index = process.sent.pop(0)
            ran.append((made.index(process), tests[index]))
            scheduler.mark_test_complete(process, index)
    return ran


def suite(files: int, each: int, alone: int) -> list[str]:
    """The tests of so many files, and those that run alone, in the order of `arranged`."""
    beside = [f"tests/test_{file}.py::test_{n}" for file in range(files) for n in range(each)]
    return beside + [f"tests/test_{n % 2}.py::test_measured[{n}]" for n in range(alone)]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize(("files", "each"), [(0, 0), (1, 1), (1, 7), (2, 1), (3, 4), (9, 3), (20, 2)])
@pytest.mark.parametrize("alone", [0, 1, 2, 5])
def test_every_test_runs_once_and_what_is_alone_when_all_others_have_ended(
    processes: int, files: int, each: int, alone: int
) -> None:
    tests = suite(files, each, alone)
    for seed in range(1, 40):
        ran = spread(processes, tests, seed)
        assert sorted(name for _, name in ran) == sorted(tests)
        last = ran[len(ran) - alone :]
        assert all("measured" in name for _, name in last)
        assert len({process for process, _ in last}) <= 1
        owners = {(process, name.split("::")[0]) for process, name in ran[: len(ran) - alone]}
        assert len(owners) == files, "a file is one process's"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_process_that_crashes_ends_the_run_and_nothing_runs_twice(processes: int) -> None:
    tests = suite(5, 3, 2)
    for seed in range(1, 40):
        for crash_in in tests:
            names = [name for _, name in spread(processes, tests, seed, crash_in)]
            assert len(set(names)) == len(names)
            assert crash_in not in names


CONFTEST: Final = """
    import json, os, pathlib, time
    import pytest
    from tests.spread import Spread, arranged, tell_alone

    def pytest_configure(config):
        for line in ("slow", "alone"):
            config.addinivalue_line("markers", line)

    def pytest_xdist_make_scheduler(config, log):
        return Spread(config, log)

    def pytest_collection_modifyitems(config, items):
        items[:] = arranged(items)
        tell_alone(config, items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        began = time.monotonic_ns()
        yield
        with open(pathlib.Path(__file__).with_name("ran"), "a") as ran:
            process = os.environ.get("PYTEST_XDIST_WORKER", "")
            ran.write(json.dumps([item.originalname, process, began, time.monotonic_ns()]) + "\\n")
"""
FILES: Final = {
    "test_a": "import pytest\n@pytest.mark.alone\ndef test_alone_a():\n    pass\ndef test_a():\n    pass\n",
    "test_b": "def test_b():\n    pass\ndef test_b_too():\n    pass\n",
    "test_c": "import pytest\n@pytest.mark.slow\ndef test_c():\n    pass\ndef test_c_too():\n    pass\n",
}


def run(pytester: pytest.Pytester, *options: str) -> list[Any]:
    """Run these files in other processes: the tests' name, process, and when they began and ended."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**FILES)
    pytester.makeini("[pytest]")
    without = [f"-pno:{name}" for name in ("schemathesis", "asyncio", "hypothesispytest", "anyio")]
    pytester.runpytest_subprocess(*without, *options, timeout=2 * HANG_S).assert_outcomes(passed=6)
    return [json.loads(line) for line in (pytester.path / "ran").read_text().splitlines()]


def test_in_two_real_processes(pytester: pytest.Pytester) -> None:
    ran = run(pytester, "-n2")
    assert {process for _, process, _, _ in ran} == {"gw0", "gw1"}
    ((_, _, began_ns, _),) = [each for each in ran if each[0] == "test_alone_a"]
    assert sorted(name for name, _, _, ended_ns in ran if ended_ns < began_ns) == [
        "test_a",
        "test_b",
        "test_b_too",
        "test_c",
        "test_c_too",
    ]


def test_one_of_two_real_processes_crashes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_0="import os\ndef test_0():\n    os._exit(3)\n")
    with pytest.raises(AssertionError, match="'failed': 1"):
        run(pytester, "-n2", "--max-worker-restart=0")


def test_in_one_process_it_is_the_same_order(pytester: pytest.Pytester) -> None:
    names = [name for name, _, _, _ in run(pytester)]
    assert names == ["test_c", "test_c_too", "test_a", "test_b", "test_b_too", "test_alone_a"]


class _Terminal:
    def __init__(self) -> None:
        self.said: list[str] = []

    def write_line(self, line: str) -> None:
        self.said.append(line)


def test_what_runs_is_said() -> None:
    running = Running(_Terminal())  # type: ignore[arg-type]
    running.pytest_xdist_node_collection_finished(["a", "b", "c"])
    for name in "abc":
        running.pytest_runtest_logstart(name)
    running.pytest_runtest_logfinish("b")
    assert running.line(running.began_s + 70.0).splitlines() == [
        "70 s: 1 of 3 tests done, running:",
        "     70 s  a",
        "     70 s  c",
    ]
    running.pytest_runtest_logfinish("a")
    running.pytest_runtest_logfinish("c")
    assert running.line(running.began_s + 80.4) == "80 s: 3 of 3 tests done, running: none"
