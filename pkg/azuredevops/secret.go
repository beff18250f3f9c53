package azuredevops

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// redacted stands wherever a secret would be printed.
const redacted = "[redacted]"

// Secret is a credential. It prints as [redacted] with every verb of fmt, in JSON
// and text encodings, and in slog; only Reveal gives it away.
//
// Hold it in exported fields or behind a type with a Format method: fmt does not
// call methods on unexported fields.
type Secret string

// Reveal gives the secret itself, for the one place that sends it.
func (s Secret) Reveal() string { return string(s) }

// String gives [redacted].
func (s Secret) String() string { return redacted }

// Format writes [redacted] whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { redact(f) }

// MarshalText gives [redacted].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON gives "[redacted]".
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// LogValue gives [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// redact writes the placeholder. A fmt.State takes every write.
func redact(w io.Writer) { _, _ = io.WriteString(w, redacted) }
