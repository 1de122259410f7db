from .case import Case as Case
from .case import paint_case as paint_case
from .export import paint_cases as paint_cases
from .follow_up import paint_follow_up as paint_follow_up
