"""One launcher for all that has many units of work: cells of a benchmark, trials of a sweep, shards of images.

A `Job` says what its units are, how one is claimed and how one is run. `launch` runs it where the user wants: in worker
processes of this machine, in the tasks of a SLURM array, or in those of a Ray cluster. Units are claimed by locks on
the file system that all share, so that workers anywhere, of several launchers too, have the work among themselves; a
lock whose process is gone is free. What has been done lies on disk: the same command goes on from there.
"""

from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.launcher import launch
from afclip_runtime.launch.where import Ended, Where

__all__ = ["Ended", "Job", "Outcome", "Unit", "Where", "launch"]
