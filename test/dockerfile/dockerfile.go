// Package dockerfile reads as much of a Dockerfile as the tests look at: its instructions,
// one by one, and what its arguments are without anybody giving them.
package dockerfile

import (
	"fmt"
	"os"
	"strings"
)

// Instruction is one of a Dockerfile, its lines joined.
type Instruction struct {
	Line int    // On which it begins.
	Name string // Such as FROM, in capitals.
	Text string // All after it.
}

// Read gives the instructions of a file in their order.
func Read(path string) ([]Instruction, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(string(text)), nil
}

// Parse gives the instructions of a Dockerfile's text.
func Parse(text string) []Instruction {
	var all []Instruction
	begun := 0 // The line on which a continued instruction begins.
	var joined strings.Builder
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue // Inside an instruction as well.
		}
		if begun == 0 {
			begun = number + 1
		}
		if rest, more := strings.CutSuffix(line, "\\"); more {
			joined.WriteString(strings.TrimSpace(rest) + " ")
			continue
		}
		joined.WriteString(line)
		name, rest, _ := strings.Cut(joined.String(), " ")
		all = append(all, Instruction{Line: begun, Name: strings.ToUpper(name), Text: strings.TrimSpace(rest)})
		joined.Reset()
		begun = 0
	}
	return all
}

// Defaults gives the arguments that hold for the FROM instructions, those before the first
// of these, with the values that they have if nobody gives others.
func Defaults(instructions []Instruction) map[string]string {
	values := map[string]string{}
	for _, in := range instructions {
		if in.Name == "FROM" {
			break
		}
		if in.Name == "ARG" {
			name, value, _ := strings.Cut(in.Text, "=")
			values[name] = Expand(value, values)
		}
	}
	return values
}

// Expand replaces ${NAME} by values; one that is not among them stays as it is.
func Expand(text string, values map[string]string) string {
	return os.Expand(text, func(name string) string {
		if value, known := values[name]; known {
			return value
		}
		return fmt.Sprintf("${%s}", name)
	})
}

// Bases gives the images that a Dockerfile starts from, without its own stages.
func Bases(instructions []Instruction) []string {
	defaults := Defaults(instructions)
	stages := map[string]bool{}
	var bases []string
	for _, in := range instructions {
		if in.Name != "FROM" {
			continue
		}
		words := strings.Fields(in.Text)
		if strings.HasPrefix(words[0], "--platform=") {
			words = words[1:]
		}
		if image := Expand(words[0], defaults); !stages[image] {
			bases = append(bases, image)
		}
		if len(words) == 3 {
			stages[words[2]] = true
		}
	}
	return bases
}

// Copied gives what a Dockerfile copies out of its context.
func Copied(instructions []Instruction) []string {
	var sources []string
	for _, in := range instructions {
		words := strings.Fields(in.Text)
		if in.Name != "COPY" || strings.Contains(in.Text, "--from=") {
			continue
		}
		for _, word := range words[:len(words)-1] { // The last one is where to.
			if !strings.HasPrefix(word, "--") {
				sources = append(sources, word)
			}
		}
	}
	return sources
}
