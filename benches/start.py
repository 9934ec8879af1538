"""Reads secrets one by one with boto3, as a start script would, and writes an env file. Used by `start.rs`."""

import os
import sys

import boto3

target, count = sys.argv[1], int(sys.argv[2])
client = boto3.client("secretsmanager")
with open(target + ".new", "w", encoding="utf-8") as file:
    for n in range(count):
        value = client.get_secret_value(SecretId=f"app/key-{n:03}")["SecretString"]
        file.write(f"KEY_{n:03}='{value}'\n")
os.rename(target + ".new", target)
