"""Draw photograph.jpg: `python figures/photograph.py CHECKPOINT`, the first rows of what `davit visualize` draws.

The photograph is china.jpg of scikit-learn, by danielbuechele (https://www.flickr.com/photos/danielbuechele/6061409035),
CC BY 2.0; here it is cropped. `make figures` leaves it out, as no checkpoint is in the repository: photograph.jpg was
drawn from the model of the first command in benchmarks/results/finetuning/README.md.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import davit
from davit.visualize.figure import look, render
from figures.style import FOLDER

STAGES = 1  # rows of attention that are shown


def main(checkpoint: str, out: Path = FOLDER / "photograph.jpg") -> None:
    """Draw the photograph, its classes, the evidence for them, and the attention of the first stage."""
    predictor = davit.load(checkpoint)
    photograph = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(photograph, "PNG")
    figure = render(predictor, look(predictor, photograph.getvalue()), STAGES)
    figure.suptitle("")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").save(out, quality=88)


if __name__ == "__main__":
    main(*sys.argv[1:2])
