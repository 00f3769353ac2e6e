"""python -m experiments: what there is."""

from experiments.listing import list_all

if __name__ == "__main__":
    print(list_all())
