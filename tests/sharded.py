"""`faithlab` under FSDP on CPUs: accelerate's launcher starts this in every process.

accelerate shares weights out on GPUs only, torch on CPUs too. All that is changed of accelerate is that it looks at its
FSDP plugin without GPUs. Each process prints what it trained.
"""

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from faithlab import grpo
from faithlab.cli import main

plain = AcceleratorState.__init__


def with_shards(self, *args, fsdp_plugin=None, **options):
    plain(self, *args, fsdp_plugin=fsdp_plugin, **options)
    plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


class Telling(grpo.FaithfulGRPOTrainer):
    def train(self, *args, **options):
        found = super().train(*args, **options)
        weight = type(next(self.model.parameters())).__name__
        print(f"{self.accelerator.num_processes} processes, {self.args.train_batch_size} rollouts each, {weight}")
        return found


AcceleratorState.__init__ = with_shards
grpo.FaithfulGRPOTrainer = Telling

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
