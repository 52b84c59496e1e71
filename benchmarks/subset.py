"""Write the lists of the CIFAR-10 subset that the tables use: 1,000 training images of each class, and all 10,000 test images.

tar -xzf cifar10.tar.gz -C DIR && python benchmarks/subset.py DIR      # writes DIR/train.csv and DIR/test.csv
"""

import sys
from pathlib import Path


def main(root: Path) -> None:
    for part, count in (("train", 1000), ("test", 1000)):
        lines = ["path,label"]
        for folder in sorted(path for path in (root / part).iterdir() if path.is_dir()):
            lines += [f"{part}/{folder.name}/{image.name},{folder.name}" for image in sorted(folder.iterdir())[:count]]
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
