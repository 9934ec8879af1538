"""Creates secrets one by one with boto3, and prints how many seconds they took. Used by `push.rs`."""

import sys
import time

import boto3

client = boto3.client("secretsmanager")
# Once for nothing: the connection, and what boto3 loads for its first call.
client.create_secret(Name="boto3/first", SecretString=f"sk-{0:045}")
began = time.perf_counter()
for n in range(int(sys.argv[1])):
    client.create_secret(Name=f"boto3/key-{n:05}", SecretString=f"sk-{n:045}")
print(time.perf_counter() - began)
