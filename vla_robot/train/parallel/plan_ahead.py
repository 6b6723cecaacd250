"""The memory of a training before its weights are there: `memory_plan` of a model that has shapes and no numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from vla_robot.core.errors import RecipeError
from vla_robot.policy.vla.codecs.scores import scores_of
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.lora import adapt, freeze_in_bf16
from vla_robot.train.parallel.memory_plan import MemoryPlan, counted, parts_of, plan_of
from vla_robot.train.sparse_last_layer import only_what_is_read


def plan_ahead(model: AnyVLAModel, recipe: FinetuneRecipe, device: torch.device, count: int) -> MemoryPlan | str:
    """Return the plan of a training whose model several ranks share, or what is known of it if it cannot be planned.

    Args:
        model: on the meta device; it is changed.
        recipe: how it will be trained.
        device: device of this rank.
        count: number of ranks.
    """
    try:
        return plan_of(planned_parts(model, recipe, count), device)
    except RecipeError:
        return f"the training {plan_of(counted(model, count), device)}, and the activations come on top"


def planned_parts(model: AnyVLAModel, recipe: FinetuneRecipe, count: int = 1) -> dict[str, int]:
    """Return name -> size [bytes] of what a training would keep on each GPU.

    Args:
        model: on the meta device; it is changed.
        recipe: how it would be trained.
        count: GPUs that share the model, if the recipe says `shard`.

    Raises:
        RecipeError: the model's code reads numbers, which there are none of.
    """
    adapt(model, recipe)
    is_shared = recipe.shard and count > 1
    if recipe.bf16 and not is_shared:
        freeze_in_bf16(model)
    only_what_is_read(model)
    # The tables of the codec are kept for all trainings of a process, so they must have numbers.
    scores_of(model.config.codec, len(model.head), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_numbers(model)
        try:
            return parts_of(model, recipe, count if is_shared else 1)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise RecipeError(
                "the training of this family cannot be planned from config.json alone, since its code reads numbers of "
                'frames; `vla finetune` without "shard" prints the plan before its first step.'
            ) from error


def _without_numbers(model: AnyVLAModel) -> None:
    """Replace the parameters and buffers of a model on the meta device by ones of main memory that take none of it."""
    made: dict[int, nn.Parameter] = {}  # weights that two modules share stay one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), empty)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
