import gc
import os
import threading
import time

from tests.tools.project import Project

from punie.tools import Index


def test_it_is_reused_until_a_file_changes(project: Project):
    project.write("a.py", "class A: ...\n")
    index = project.workspace.index
    first = index.refresh()
    assert index.refresh() is first
    project.write("b.py", "class B: ...\n")
    second = index.refresh()
    assert [symbol.name for symbol in second.symbols] == ["A", "B"]
    assert second.files["a.py"] is first.files["a.py"]
    (project.root / "a.py").unlink()
    assert [symbol.name for symbol in index.refresh().classes] == ["B"]


def test_a_replaced_file_of_the_same_size_and_time_is_read_again(project: Project):
    place = project.write("a.py", "class A: ...\n")
    os.utime(place, ns=(5, 5))
    project.workspace.index.refresh()
    replacement = project.write("new", "class B: ...\n")
    os.utime(replacement, ns=(5, 5))
    replacement.rename(place)
    assert [symbol.name for symbol in project.workspace.index.refresh().symbols] == ["B"]


def test_a_file_that_stops_parsing_and_starts_again(project: Project):
    project.write("a.py", "class A: ...\n")
    assert project.workspace.index.refresh().unparsed == ()
    project.write("a.py", "class A(:\n")
    assert project.workspace.index.refresh().unparsed == ("a.py",)
    project.write("a.py", "class AA: ...\n")
    assert project.workspace.index.refresh().unparsed == ()


def test_sources_that_break_parsers(project: Project):
    project.write("deep.py", "x = " + "(" * 5_000 + ")" * 5_000)
    project.write("nested.py", "x = " + "-" * 100_000 + "1")
    project.write("elif.py", "if a:\n    pass\n" + "elif b:\n    def f(): ...\n" * 3_000)
    project.write("fine.py", "class Fine: ...\n")
    names = {symbol.name for symbol in project.workspace.index.refresh().symbols}
    assert "Fine" in names
    assert project.lines("find_references", "b")[-1].startswith(("elif.py", "...", "("))


def test_it_can_be_filled_in_the_background_from_several_threads(project: Project):
    for number in range(50):
        project.write(f"m{number}.py", f"class C{number}: ...\n")
    threads = [project.workspace.warm() for _ in range(4)]
    assert project.lines("find_symbol", "C7")[0] == "1 definition of C7"
    for thread in threads:
        thread.join()
    assert gc.isenabled()


def test_queries_while_files_come_and_go(project: Project):
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            project.write("x/a.py", "class A(B): ...\n")
            (project.root / "x/a.py").unlink()
            (project.root / "x").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    answers = {project.lines("find_subclasses", "B")[0] for _ in range(100)}
    done.set()
    thread.join()
    assert answers <= {"0 classes inherit from B", "1 class inherits from B"}


def test_reading_again_costs_little(project: Project):
    method = "    def method_{0}(self, value: int = {0}) -> int:\n        return self.method_{0}(value + {0})\n"
    body = "class C:\n" + "".join(method.format(number) for number in range(60))
    for number in range(200):
        project.write(f"p{number % 10}/m{number}.py", body)
    index = Index(project.workspace.root)
    started = time.perf_counter()
    index.refresh()
    first = time.perf_counter() - started
    started = time.perf_counter()
    index.refresh()
    again = time.perf_counter() - started
    assert again < first / 3
