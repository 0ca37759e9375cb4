"""The labels of detectors trained on COCO, and of DETR's panoptic models."""

# Category names by COCO's own numbers, which leave gaps (cocodataset.org, instances_val2017.json).
_NAMES = """\
N/A person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant N/A stop_sign parking_meter
bench bird cat dog horse sheep cow elephant bear zebra giraffe N/A backpack umbrella N/A N/A handbag tie suitcase
frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle N/A
wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch
potted_plant bed N/A dining_table N/A N/A toilet N/A tv laptop mouse remote keyboard cell_phone microwave oven toaster
sink refrigerator N/A book clock vase scissors teddy_bear hair_drier toothbrush"""

COCO_LABELS = tuple(name if name == "N/A" else name.replace("_", " ") for name in _NAMES.split())

# Stuff, from 92 on, with the same gaps (cocodataset/panopticapi, panoptic_coco_categories.json).
_STUFF = """\
banner blanket N/A bridge N/A N/A N/A N/A cardboard N/A N/A N/A N/A N/A N/A counter N/A curtain N/A N/A door-stuff N/A
N/A N/A N/A N/A floor-wood flower N/A N/A fruit N/A N/A gravel N/A N/A house N/A light N/A N/A mirror-stuff N/A N/A N/A
N/A net N/A N/A pillow N/A N/A platform playingfield N/A railroad river road N/A roof N/A N/A sand sea shelf N/A N/A
snow N/A stairs N/A N/A N/A N/A tent N/A towel N/A N/A wall-brick N/A N/A N/A wall-stone wall-tile wall-wood water-other
N/A window-blind window-other N/A N/A tree-merged fence-merged ceiling-merged sky-other-merged cabinet-merged
table-merged floor-other-merged pavement-merged mountain-merged grass-merged dirt-merged paper-merged food-other-merged
building-other-merged rock-merged wall-other-merged rug-merged"""

# DETR's panoptic models have 250 classes: COCO's numbers, and room above them (facebookresearch/detr, models/detr.py).
PANOPTIC_CLASSES = 250
_NAMED = (*COCO_LABELS, "N/A", *_STUFF.split())
PANOPTIC_LABELS = (*_NAMED, *["N/A"] * (PANOPTIC_CLASSES - len(_NAMED)))
# Things end at 90 (the same file, `is_thing_map`).
PANOPTIC_STUFF = tuple(range(len(COCO_LABELS), PANOPTIC_CLASSES))
NO_STUFF = "the checkpoint does not say which classes are stuff, so every class may have several segments in a picture"
