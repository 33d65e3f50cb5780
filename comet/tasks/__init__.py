"""Labelled data to fine-tune and evaluate on: texts with one label each, or words with one tag each."""

from comet.tasks.opening import open_task
from comet.tasks.recipe import TaskRecipe
from comet.tasks.task import Example, Task, TaskData

__all__ = ["Example", "Task", "TaskData", "TaskRecipe", "open_task"]
