"""How often a model is right."""

from ferryman.specs import Facts, Fraction


class TopScores(Facts):
    """Of a classifier. right: pictures whose best class is the true one; top1, top5: shares of all pictures

    top5: None where the model has five classes or fewer, of which the true one always is
    per_class: top-1 of the pictures of each class, by its label
    """

    pictures: int
    right: int
    top1: Fraction
    top5: Fraction | None
    per_class: dict[str, Fraction]

    @property
    def figures(self) -> dict[str, float | None]:
        """By the names that people know."""
        return {"top-1": self.top1, "top-5": self.top5}

    @property
    def main(self) -> tuple[str, float]:
        """The figure that models are compared by, with its name."""
        return "top-1", self.top1


class BoxScores(Facts):
    """Of a detector, on boxes, as COCO defines them. objects: to be found, crowds not counted

    map: average precision, the mean over classes and IoU 0.50 to 0.95; map_50, map_75: at that IoU alone
    map_small, map_medium, map_large: of objects of up to 32x32, up to 96x96 and more pixels; None where there are none
    recall_100: the mean over classes and IoUs of the recall with at most 100 detections a picture and class
    per_class: `map` of each class that has objects, by its label
    """

    pictures: int
    objects: int
    map: Fraction
    map_50: Fraction
    map_75: Fraction
    map_small: Fraction | None
    map_medium: Fraction | None
    map_large: Fraction | None
    recall_100: Fraction
    per_class: dict[str, Fraction]

    @property
    def figures(self) -> dict[str, float | None]:
        """By the names that people know."""
        return {"mAP": self.map, "mAP@0.5": self.map_50, "mAP@0.75": self.map_75}

    @property
    def main(self) -> tuple[str, float]:
        """The figure that models are compared by, with its name."""
        return "mAP", self.map
