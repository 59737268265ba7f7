"""The ledger: the run's store of finished groups, the only way that data goes from rollout to training.

A step is one directory `ledger/step-NNNNNN/`: `rollouts.arrow`, an Arrow IPC stream with one record batch (a
*segment*) a group, and `index.jsonl`, which gives each segment's place and checksum. While it is being written the
directory is called `step-NNNNNN.open`; closing it is one atomic rename. Imports no torch.
"""
