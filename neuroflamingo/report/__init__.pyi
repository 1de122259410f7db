from .model import Report as Report
