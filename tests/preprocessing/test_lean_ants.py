"""ANTs as a fit needs it is light, and whole for who asks for more; in processes of their own."""

import subprocess
import sys

import pytest

NOT_FOR_A_FIT = ("pandas", "statsmodels", "sklearn", "matplotlib")
IN_USE = "from preprocessing.lean_ants import ants\nants()\n"


def printed(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_a_fit_loads_no_statistics_and_no_plots():
    say = f"import sys; print([name for name in {NOT_FOR_A_FIT} if name in sys.modules])"
    assert printed(IN_USE + say) == "[]"
    assert printed("import ants\n" + say) == str(list(NOT_FOR_A_FIT))  # what is saved


def test_every_name_of_ants_is_there_when_it_is_asked_for():
    names = "print(sorted(name for name in dir(ants) if not name.startswith('_')))"
    ask = "import ants\nants.quantile\n"
    assert printed(IN_USE + ask + names) == printed("import ants\n" + names)


def test_pandas_is_whole_for_ants_and_for_others():
    use = """
import ants, numpy, pandas
labels = ants.from_numpy(numpy.ones((4, 4, 4), "float32"))
table = ants.label_stats(labels, labels)
print(isinstance(table, pandas.DataFrame), int(table["Count"].sum()))
"""
    assert printed(IN_USE + use) == "True 64"


@pytest.mark.parametrize("name", ["nothing_of_the_kind", "__nothing__"])
def test_what_ants_does_not_have_is_an_attribute_error(name: str):
    ask = f"""
import ants
try:
    ants.{name}
except AttributeError as error:
    print(error)
"""
    assert name in printed(IN_USE + ask)
