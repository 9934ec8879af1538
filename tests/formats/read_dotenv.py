"""Reads env files as an application does: for each FILE one line of JSON, the names with their values in base64, or
"error". The first argument is the reader: dotenv or json."""

import base64
import json
import logging
import os
import sys

import dotenv


def read_dotenv(file):
    before = set(os.environ)
    dotenv.load_dotenv(file, override=True)
    values = {name: os.environb[name.encode()] for name in os.environ if name not in before}
    for name in values:
        del os.environ[name]
    return values


def read_json(file):
    with open(file, encoding="utf-8") as text:
        return {name: value.encode() for name, value in json.load(text).items()}


logging.disable()
read = {"dotenv": read_dotenv, "json": read_json}[sys.argv[1]]
for file in sys.argv[2:]:
    try:
        answer = {name: base64.b64encode(value).decode() for name, value in read(file).items()}
    except ValueError:
        answer = "error"
    print(json.dumps(answer))
