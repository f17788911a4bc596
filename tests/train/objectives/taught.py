"""Runs with one objective on tiny models."""

import contextlib
import re

import torch

from lissom.train.run import train
from tests import tiny
from tests.train.during import families
from tests.train.tiny_rows import rows

HEAD = "AutoModelForSequenceClassification"


def learned(work, student, teacher, objective, *, kind="classification"):
    """The loss of each of 8 steps on the same 16 rows."""
    torch.set_num_threads(1)
    values = []
    options = {"epochs": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup": 0.0, "work": work}

    def report(phrase, fraction):
        values.append(float(re.search(r"loss ([\d.e+-]+)", phrase)[1]))

    made = families.rows if student.config.is_encoder_decoder else rows
    train(student, made(kind=kind, count=16), {objective.name: objective}, teachers=[teacher], report=report, **options)
    return values


def resumes(work, objective, family="bert"):
    """Whether a run that is cut after seven of ten steps ends as one that is not, to the byte."""
    torch.set_num_threads(1)

    def run(folder, stop=0):
        def report(phrase, fraction):
            if round(10 * fraction) == stop:
                raise KeyboardInterrupt

        student, teacher = tiny.model(family, HEAD), tiny.model(family, HEAD, seed=1, hidden_size=16)
        options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_seconds": 0, "report": report}
        done = train(student, rows(), {objective.name: objective}, teachers=[teacher], work=work / folder, **options)
        return student.state_dict(), done

    whole, _ = run("whole")
    with contextlib.suppress(KeyboardInterrupt):
        run("cut", stop=7)
    again, done = run("cut")
    return done.resumed == 6 and all(torch.equal(whole[name], again[name]) for name in whole)
