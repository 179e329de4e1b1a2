"""The real OpenAI and Anthropic SDKs run an agent loop against `nibble serve`: stream, tool call, tool
result, final answer. Once with scripted replies, where every word is known, and once with the demo
model. Usage: clients.py NIBBLE MODEL
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import anthropic
import openai

SCRIPT = [
    {"text": "I look it up.\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n"
             "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"},
    {"when": "<tool_response>", "text": "Done.\n</think>\n\nIt rains in Oslo."},
]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"},
                                               "days": {"type": "integer"}}}
QUESTION = "What is the weather in Oslo?"


class Server:
    def __init__(self, nibble, model, *flags):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [nibble, "serve", model, "--port", "0", "--served-model-name", "demo", *flags],
            stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            self.log.seek(0)
            found = re.search(r"listening url=(\S+)", self.log.read())
            if found:
                break
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise SystemExit("the server did not start:\n" + self.log.read())
            time.sleep(0.05)
        self.url = found.group(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def openai_chat(url, expect):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    messages = [{"role": "user", "content": QUESTION}]
    content, calls, reason = "", {}, None
    for chunk in client.chat.completions.create(model="demo", messages=messages, tools=tools,
                                                stream=True, temperature=0, max_tokens=256,
                                                stream_options={"include_usage": True}):
        if not chunk.choices:
            assert chunk.usage.completion_tokens > 0
            continue
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for piece in delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"id": piece.id, "name": "", "arguments": ""})
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    if expect:
        assert reason == "tool_calls", reason
        assert json.loads(calls[0]["arguments"]) == {"city": "Oslo", "days": 3}, calls
    assert reason in ("tool_calls", "stop", "length"), reason
    # A model that made no call is given one, so that the second turn is always asked.
    call = calls.get(0) or {"id": "call_0", "name": "weather", "arguments": '{"city": "Oslo"}'}
    messages += [
        {"role": "assistant", "content": content,
         "tool_calls": [{"id": call["id"], "type": "function",
                         "function": {"name": call["name"], "arguments": call["arguments"]}}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "rain, 7 degrees"}]
    final = client.chat.completions.create(model="demo", messages=messages, tools=tools,
                                           temperature=0, max_tokens=256)
    if expect:
        assert final.choices[0].message.content == "\n\nIt rains in Oslo.", final
        assert final.choices[0].finish_reason == "stop"
    try:
        client.chat.completions.create(model="other", messages=messages)
        raise AssertionError("an unknown model was served")
    except openai.NotFoundError as error:
        assert "does not exist" in str(error)
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.completions.create(model="demo", prompt="a", max_tokens=2).choices[0].text


def openai_responses(url, expect):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    tools = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
    with client.responses.stream(model="demo", input=QUESTION, tools=tools, temperature=0,
                                 max_output_tokens=256) as stream:
        for _ in stream:
            pass
        first = stream.get_final_response()
    assert client.responses.retrieve(first.id).id == first.id
    if not expect:
        return
    call = [item for item in first.output if item.type == "function_call"][0]
    assert json.loads(call.arguments) == {"city": "Oslo", "days": 3}
    second = client.responses.create(
        model="demo", previous_response_id=first.id, tools=tools,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}])
    assert second.output_text == "\n\nIt rains in Oslo.", second.output_text


def anthropic_messages(url, expect):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    messages = [{"role": "user", "content": QUESTION}]
    with client.messages.stream(model="demo", max_tokens=256, messages=messages,
                                tools=tools) as stream:
        first = stream.get_final_message()
    count = client.messages.count_tokens(model="demo", messages=messages, tools=tools)
    assert count.input_tokens == first.usage.input_tokens
    if not expect:
        assert first.stop_reason in ("tool_use", "end_turn", "max_tokens"), first
        return
    assert first.stop_reason == "tool_use", first
    call = [block for block in first.content if block.type == "tool_use"][0]
    assert call.input == {"city": "Oslo", "days": 3}, call
    messages += [
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id,
                                      "content": "rain"}]}]
    final = client.messages.create(model="demo", max_tokens=256, messages=messages, tools=tools)
    assert final.content[-1].text == "\n\nIt rains in Oslo.", final
    assert final.stop_reason == "end_turn"


def curl(url):
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
    out = subprocess.run(["curl", "-sS", url + "/v1/chat/completions", "-H",
                          "Content-Type: application/json", "-d", body],
                         check=True, capture_output=True, timeout=60).stdout
    assert json.loads(out)["choices"], out
    assert urllib.request.urlopen(url + "/health").status == 200


def main():
    nibble, model = sys.argv[1:]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as script:
        script.write("".join(json.dumps(line) + "\n" for line in SCRIPT))
        script.flush()
        for expect, flags in ((True, ["--scripted", script.name]), (False, [])):
            with Server(nibble, model, *flags) as server:
                for client in (openai_chat, openai_responses, anthropic_messages):
                    client(server.url, expect)
                    print("ok", client.__name__, "scripted" if expect else "demo model")
                curl(server.url)
                print("ok curl")


if __name__ == "__main__":
    main()
