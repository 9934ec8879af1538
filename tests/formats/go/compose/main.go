// Reads env files as Docker Compose does: for each FILE one line of JSON, the names with their values in base64, or
// "error".
package main

import (
	"encoding/json"
	"io"
	"os"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/sirupsen/logrus"
)

func main() {
	logrus.SetOutput(io.Discard)
	out := json.NewEncoder(os.Stdout)
	for _, file := range os.Args[1:] {
		if err := out.Encode(read(file)); err != nil {
			panic(err)
		}
	}
}

func read(file string) any {
	texts, err := dotenv.ReadWithLookup(os.LookupEnv, file)
	if err != nil {
		return "error"
	}
	values := map[string][]byte{}
	for name, text := range texts {
		// What an environment refuses, the container's would too.
		if os.Setenv(name, text) != nil {
			return "error"
		}
		os.Unsetenv(name)
		values[name] = []byte(text)
	}
	return values
}
