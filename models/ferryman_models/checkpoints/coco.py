"""The labels of detectors trained on COCO."""

# Category names by COCO's own numbers, which leave gaps (cocodataset.org, instances_val2017.json).
_NAMES = """\
N/A person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant N/A stop_sign parking_meter
bench bird cat dog horse sheep cow elephant bear zebra giraffe N/A backpack umbrella N/A N/A handbag tie suitcase
frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle N/A
wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch
potted_plant bed N/A dining_table N/A N/A toilet N/A tv laptop mouse remote keyboard cell_phone microwave oven toaster
sink refrigerator N/A book clock vase scissors teddy_bear hair_drier toothbrush"""

COCO_LABELS = tuple(name if name == "N/A" else name.replace("_", " ") for name in _NAMES.split())
