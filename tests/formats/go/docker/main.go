// Reads env files as `docker run --env-file` does: for each FILE one line of JSON, the names with their values in
// base64, or "error".
package main

import (
	"encoding/json"
	"os"

	"github.com/docker/cli/opts"
)

func main() {
	out := json.NewEncoder(os.Stdout)
	for _, file := range os.Args[1:] {
		if err := out.Encode(read(file)); err != nil {
			panic(err)
		}
	}
}

func read(file string) any {
	lines, err := opts.ReadKVEnvStrings([]string{file}, nil)
	if err != nil {
		return "error"
	}
	values := map[string][]byte{}
	for name, text := range opts.ConvertKVStringsToMap(lines) {
		// What an environment refuses, the container's would too.
		if os.Setenv(name, text) != nil {
			return "error"
		}
		os.Unsetenv(name)
		values[name] = []byte(text)
	}
	return values
}
