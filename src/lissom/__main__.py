"""`python -m lissom`, and `torchrun --nproc-per-node 2 -m lissom`."""

from lissom.cli import main

if __name__ == "__main__":
    main()
