// Reads env files with the kubelet's own parser, as the kubelet does for `fileKeyRef`: for each FILE one line of JSON,
// the names with their values in base64, or "error".
package main

import (
	"encoding/json"
	"os"
	"regexp"

	"k8s.io/kubernetes/pkg/kubelet/util/env"
)

// The kubelet is asked for one name at a time. This finds all that could be asked for; what is none has no value.
var names = regexp.MustCompile(`(?m)^[ \t]*([A-Za-z_][A-Za-z0-9_]*)=`)

func main() {
	out := json.NewEncoder(os.Stdout)
	for _, file := range os.Args[1:] {
		if err := out.Encode(read(file)); err != nil {
			panic(err)
		}
	}
}

func read(file string) any {
	content, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	values := map[string][]byte{}
	for _, match := range names.FindAllSubmatch(content, -1) {
		name := string(match[1])
		value, err := env.ParseEnv(file, name)
		// The container runtime refuses a NUL in an environment.
		if err != nil || os.Setenv(name, value) != nil {
			return "error"
		}
		// `kubelet_pods.go` takes an empty value for a missing one.
		if value != "" {
			values[name] = []byte(value)
		}
	}
	return values
}
