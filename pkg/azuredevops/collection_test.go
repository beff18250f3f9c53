package azuredevops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// readAll gives the rows as text; a problem stands as "!" with its words.
func readAll(r io.Reader) ([]string, error) {
	var rows []string
	_, err := readCollection(r, func(row []byte, problem error) error {
		if problem != nil {
			rows = append(rows, "!"+problem.Error())
		} else {
			rows = append(rows, string(row))
		}
		return nil
	})
	return rows, err
}

func TestReadCollection(t *testing.T) {
	t.Parallel()
	long := `{"a":"` + strings.Repeat("x", maxRow) + `"}`
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	tests := map[string]struct {
		text string
		rows []string
		fail string // Part of the error; empty for none.
	}{
		"empty list":             {`{"count":0,"value":[]}`, nil, ""},
		"byte order mark":        {"\ufeff" + `{"count":1,"value":[{}]}`, []string{"{}"}, ""},
		"count last":             {` { "value" : [ {"a":[1,{"b":"]}"}]} , 2 ] , "count" : 2 } ` + "\n", []string{`{"a":[1,{"b":"]}"}]}`, "2"}, ""},
		"other members":          {`{"x":{"value":[1,2]},"y":[[]],"z":"\"}","n":null,"value":[1]}`, []string{"1"}, ""},
		"escapes":                {`{"value":["\\","\"","\\\"]"]}`, []string{`"\\"`, `"\""`, `"\\\"]"`}, ""},
		"escaped name":           {`{"\u0076alue":[7]}`, []string{"7"}, ""},
		"rows that are no JSON":  {`{"count":4,"value":[{"a":},{b:1},{"c":1,},nul]}`, []string{`{"a":}`, `{b:1}`, `{"c":1,}`, "nul"}, ""},
		"a row that is too long": {`{"count":3,"value":[1,` + long + `,2]}`, []string{"1", "!" + errRowTooLong.Error(), "2"}, ""},
		"empty":                  {"", nil, "the answer is empty"},
		"white space":            {" \n", nil, "the answer is empty"},
		"only a mark":            {"\ufeff", nil, "the answer is empty"},
		"a page":                 {" <html>", nil, errPage.Error()},
		"a list":                 {"[1]", nil, "not with an object"},
		"a word":                 {"null", nil, "not with an object"},
		"no value":               {`{"count":0}`, nil, "no list named value"},
		"value null":             {`{"count":0,"value":null}`, nil, "not a list"},
		"value an object":        {`{"count":1,"value":{"Message":"x"}}`, nil, "not a list"},
		"two values":             {`{"value":[],"value":[]}`, nil, "two lists"},
		"count too high":         {`{"count":2,"value":[1]}`, []string{"1"}, "1 rows, but the count says 2"},
		"count too low":          {`{"count":0,"value":[1]}`, []string{"1"}, "the count says 0"},
		"count negative":         {`{"count":-1,"value":[]}`, nil, "not a number of rows"},
		"count null":             {`{"count":null,"value":[]}`, nil, "not a number of rows"},
		"count a word":           {`{"count":"two","value":[]}`, nil, "not a number of rows"},
		"count too long":         {`{"count":` + strings.Repeat("1", 2*maxKey) + `,"value":[]}`, nil, "count"},
		"cut at the start":       {`{`, nil, io.ErrUnexpectedEOF.Error()},
		"cut in a name":          {`{"val`, nil, io.ErrUnexpectedEOF.Error()},
		"cut after a row":        {`{"count":1,"value":[1`, nil, io.ErrUnexpectedEOF.Error()},
		"cut after a comma":      {`{"value":[1,`, []string{"1"}, io.ErrUnexpectedEOF.Error()},
		"cut in a text":          {`{"value":["a\`, nil, io.ErrUnexpectedEOF.Error()},
		"cut after the list":     {`{"value":[1]`, []string{"1"}, io.ErrUnexpectedEOF.Error()},
		"comma before the end":   {`{"value":[1,]}`, []string{"1"}, "where a value belongs"},
		"comma at the start":     {`{"value":[,1]}`, nil, "where a value belongs"},
		"no comma":               {`{"value":[1 2]}`, []string{"1"}, "where a comma"},
		"brackets crossed":       {`{"value":[{"a":[}]]}`, nil, "closes"},
		"no colon":               {`{"value"[1]}`, nil, "where a colon"},
		"name is no text":        {`{7:[1]}`, nil, "name of a member"},
		"too deep":               {`{"value":[` + deep + `]}`, nil, "deep"},
		"something after":        {`{"value":[1]} x`, []string{"1"}, "follows the end"},
		"a second answer":        {`{"value":[1]}{"value":[2]}`, []string{"1"}, "follows the end"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for how, r := range map[string]io.Reader{
				"whole":     strings.NewReader(test.text),
				"in pieces": iotest.HalfReader(strings.NewReader(test.text)),
				"EOF early": iotest.DataErrReader(strings.NewReader(test.text)),
			} {
				rows, err := readAll(r)
				if test.fail == "" && err != nil || test.fail != "" && (err == nil || !strings.Contains(err.Error(), test.fail)) {
					t.Errorf("%s: error %v, want %q", how, err, test.fail)
				}
				if !reflect.DeepEqual(rows, test.rows) {
					t.Errorf("%s: rows %q, want %q", how, rows, test.rows)
				}
			}
		})
	}
}

// TestReadCollectionReaderFails shows that a failure of the reader is given on, and
// never taken for the end.
func TestReadCollectionReaderFails(t *testing.T) {
	t.Parallel()
	const text = `{"count":1,"value":[{"a":"b"}],"x":1}`
	broken := errors.New("broken")
	for n := range len(text) {
		r := io.MultiReader(strings.NewReader(text[:n]), iotest.ErrReader(broken))
		if _, err := readAll(r); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// TestEveryCutIsNoticed cuts a good answer at every byte.
func TestEveryCutIsNoticed(t *testing.T) {
	t.Parallel()
	const text = "\ufeff" + `{"count":2,"value":[{"requestId":1,"demands":["a -equals \"b\""]},{"requestId":2}]}`
	for n := range len(text) {
		if rows, err := readAll(strings.NewReader(text[:n])); err == nil {
			t.Errorf("cut after %d bytes: %q and no error", n, rows)
		}
	}
}

// TestCollectionsOfAnyRows checks against encoding/json: whatever rows there are,
// good ones and balanced bad ones, each comes out as it went in.
func TestCollectionsOfAnyRows(t *testing.T) {
	t.Parallel()
	value := anyValue(4)
	rapid.Check(t, func(t *rapid.T) {
		var rows []string
		for i := range rapid.IntRange(0, 12).Draw(t, "rows") {
			if rapid.IntRange(0, 5).Draw(t, "kind") == 0 {
				rows = append(rows, rapid.SampledFrom([]string{`{"requestId":}`, `{,}`, `{"a" "b"}`, `tru`, `{"x":[1,2,]}`, `"\q"`, `01`}).Draw(t, "bad"))
				continue
			}
			row, err := json.Marshal(value.Draw(t, fmt.Sprint("row", i)))
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, string(row))
		}
		space := rapid.SampledFrom([]string{"", " ", "\r\n\t"}).Draw(t, "space")
		members := []string{`"value":[` + space + strings.Join(rows, space+","+space) + space + `]`}
		if rapid.Bool().Draw(t, "with count") {
			members = append(members, fmt.Sprintf(`"count":%d`, len(rows)))
		}
		if rapid.Bool().Draw(t, "with more") {
			more, err := json.Marshal(value.Draw(t, "more"))
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, `"more":`+string(more))
		}
		text := "{" + strings.Join(rapid.Permutation(members).Draw(t, "order"), space+",") + "}" + space
		got, err := readAll(iotest.OneByteReader(strings.NewReader(text)))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if len(got) != len(rows) {
			t.Fatalf("%s: %d rows, want %d", text, len(got), len(rows))
		}
		for i := range rows {
			if got[i] != rows[i] {
				t.Fatalf("row %d: %s, want %s", i, got[i], rows[i])
			}
		}
	})
}

// anyValue draws JSON values down to a depth.
func anyValue(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		kinds := 6
		if depth == 0 {
			kinds = 4
		}
		switch rapid.IntRange(0, kinds-1).Draw(t, "type") {
		case 0:
			return rapid.String().Draw(t, "text")
		case 1:
			return rapid.Float64Range(-1e9, 1e9).Draw(t, "number")
		case 2:
			return rapid.Bool().Draw(t, "truth")
		case 3:
			return nil
		case 4:
			return rapid.SliceOfN(anyValue(depth-1), 0, 3).Draw(t, "list")
		default:
			return rapid.MapOfN(rapid.String(), anyValue(depth-1), 0, 3).Draw(t, "object")
		}
	})
}

// FuzzReadCollection holds that what encoding/json takes for a whole answer with a
// right count is read the same, and what it refuses as a whole is an error here
// unless only a row is to blame.
func FuzzReadCollection(f *testing.F) {
	for _, seed := range []string{
		`{"count":1,"value":[{"requestId":1}]}`, "\ufeff" + `{"value":[],"count":0}`, `{"count":2,"value":[{"a":"]\"}"},[]]}`,
		`{"value":[1`, `<html>`, `{"value":[{"a":[}]}]}`, `{"count":1,"value":[{"a":}]}`, `{"value":[1]}x`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		rows, err := readAll(bytes.NewReader(text))
		var whole map[string]json.RawMessage
		plain := trimMark(text)
		valid := json.Valid(plain) && json.Unmarshal(plain, &whole) == nil
		if err == nil && !valid {
			// Somewhere between the brackets is what JSON does not allow; what was
			// read must be all there is, in its order, and nothing else.
			rest := string(plain)
			for _, row := range rows {
				i := strings.Index(rest, strings.TrimPrefix(row, "!"))
				if i < 0 && !strings.HasPrefix(row, "!") {
					t.Fatalf("row %q is not in %q", row, text)
				}
				rest = rest[max(i, 0):]
			}
		}
		if !valid || err != nil {
			return
		}
		// The scanner refuses a name that comes twice, so there is one list.
		var want []json.RawMessage
		if err := json.Unmarshal(whole["value"], &want); err != nil {
			t.Fatalf("%q was read, but its value is no list: %v", text, err)
		}
		if len(want) != len(rows) {
			t.Fatalf("%q: %d rows, want %d", text, len(rows), len(want))
		}
		for i := range want {
			if string(want[i]) != rows[i] {
				t.Fatalf("%q: row %d is %q, want %q", text, i, rows[i], want[i])
			}
		}
	})
}
