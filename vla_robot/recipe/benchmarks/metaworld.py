"""Meta-World's tasks, with words for a policy, and its sets of tasks. Source: package metaworld 3.1.1.

The package has no instructions: these are ours, one sentence for each task.
"""

METAWORLD_WORDS = {
    "assembly": "put the ring over the peg",
    "basketball": "put the ball into the basket",
    "bin-picking": "put the block into the other bin",
    "box-close": "put the lid on the box",
    "button-press": "press the button",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "press the button from above behind the wall",
    "button-press-wall": "press the button behind the wall",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hammer the nail into the box",
    "hand-insert": "put the gripper into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "put the peg into the hole from the side",
    "peg-unplug-side": "pull the peg out of the hole",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "put the puck at the goal",
    "pick-place-wall": "put the puck at the goal behind the wall",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate out of the cabinet to the side",
    "plate-slide-side": "slide the plate into the cabinet from the side",
    "push": "push the puck to the goal",
    "push-back": "pull the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the puck on the shelf",
    "soccer": "push the ball into the net",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the puck off the table",
    "sweep-into": "sweep the puck into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
"""Task -> its words. The package's name of a task has "-v3" after it."""

METAWORLD_SUITES = {
    "mt50": tuple(METAWORLD_WORDS),
    "mt10": (
        "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
        "peg-insert-side", "window-open", "window-close",
    ),
    "ml10_train": (
        "reach", "push", "pick-place", "door-open", "drawer-close", "button-press-topdown", "peg-insert-side",
        "window-open", "sweep", "basketball",
    ),
    "ml10_test": ("drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull"),
}  # fmt: skip
"""Set of tasks -> its tasks. ML10's test tasks are those that a policy trained on the ten others has never seen."""

METAWORLD_STEPS = 500
METAWORLD_STATES = 50
"""Parameter sets of each task: where its object and its goal are."""
