"""The launcher for commands with many units of work: cells of a benchmark, trials of a sweep, shards of images.

A `Job` defines its units, how a unit is claimed and how it is run. `launch` runs it in worker processes of this
machine, in tasks of a SLURM array, or on a Ray cluster: in actors of Ray Data if the units are numbers (`NumberedJob`),
else in tasks. Units are claimed by locks on the shared file system. So workers on all machines, also of several
launchers, share the work. The lock of a dead process is free. Results are on disk, and the same command continues from
there.
"""

from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.launcher import launch, require_launcher
from afclip_runtime.launch.numbered import NumberedJob
from afclip_runtime.launch.where import Ended, Where

__all__ = ["Ended", "Job", "NumberedJob", "Outcome", "Unit", "Where", "launch", "require_launcher"]
