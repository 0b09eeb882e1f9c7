"""The Python library `google-genai`: it calls the function by itself, with its default API version."""

from google import genai
from google.genai import types

from shared import MODEL, PROMPT, TOOL_RESULT, URL, run


def bash(command: str) -> str:
    """Runs a shell command."""
    return TOOL_RESULT


def turn():
    client = genai.Client(api_key="dummy", http_options=types.HttpOptions(base_url=f"{URL}/google"))
    config = types.GenerateContentConfig(tools=[bash])
    return client.models.generate_content(model=MODEL, contents=PROMPT, config=config).text


run(turn)
