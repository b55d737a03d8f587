#!/bin/sh
# An Optuna journal whose last line was cut off by a kill can be opened and read, but the next change makes it unreadable for good.
# The reader skips a last line without a line break, but the writer appends to that line. From then on every load_study raises
# JSONDecodeError, and the records before the cut cannot be reached either.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    optuna==5.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import json

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage() -> JournalStorage:
    return JournalStorage(JournalFileBackend("study.journal"))


study = optuna.create_study(storage=storage(), study_name="s")
for value in (1.0, 2.0):
    study.tell(study.ask(), value)
with open("study.journal", "rb+") as file:
    file.truncate(file.seek(0, 2) - 10)  # as when the process dies while it writes the second result
study = optuna.load_study(storage=storage(), study_name="s")
print("optuna", optuna.__version__, "; after the cut:", [trial.state.name for trial in study.trials])
assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
for _ in range(2):
    try:
        optuna.load_study(storage=storage(), study_name="s").ask()
    except (AttributeError, ValueError) as error:  # the new trial stands in the cut line, which is not read
        print("ask:", repr(error))
    else:
        raise SystemExit("a trial was begun")
for _ in range(2):
    try:
        optuna.load_study(storage=storage(), study_name="s")
    except json.JSONDecodeError as error:
        print("load_study:", repr(error))
    else:
        raise SystemExit("the study was read")
PYTHON
