"""`python -m moirai_tf.verify job.json`: the child process of `moirai_tf.verify.verify`.

The job names the models, the options and the file that the answer goes to: a report, or the
`MoiraiError` that stopped it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from moirai_tf.cluster import read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.verify.examine import examine
from moirai_tf.verify.options import VerifyOptions
from moirai_tf.verify.report import report_to_json


def main(job_file: str) -> None:
    """Does one job."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    options = VerifyOptions(**{**job["options"], "loaders": tuple(job["options"]["loaders"])})
    try:
        cluster = read_cluster(job["cluster"]) if job["cluster"] else None
        report = examine(
            Path(job["original"]), Path(job["placed"]), job["devices"], options, Path(job["work"]),
            cluster,
        )  # fmt: skip
        answer = {"report": report_to_json(report)}
    except MoiraiError as error:
        answer = {"error": {"rule": error.rule, "why": error.why, "fix": error.fix}}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # TensorFlow waits at exit, for ever, for workers that are gone
