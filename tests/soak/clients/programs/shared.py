"""What every Python program here needs: who is asked, the prompt, and the tool that it offers."""

import os
import sys

URL = os.environ["OUTRIGGER_URL"]
MODEL = os.environ["OUTRIGGER_MODEL"]
PROMPT = "Look around with your shell, then say what you saw."
# Nothing is run: the tool always says what the rehearsal's shell command would have printed.
TOOL_RESULT = "rehearsal-was-here"
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
ANTHROPIC_TOOL = {"name": "bash", "description": "Runs a shell command.", "input_schema": SCHEMA}


def run(turn):
    """Prints the turn's text, or the exception as a program that does not catch it would show it."""
    try:
        print(turn())
    except Exception as error:
        print(f"{type(error).__module__}.{type(error).__name__}: {error}")
        sys.exit(1)
