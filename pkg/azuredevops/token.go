package azuredevops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Scheme is how a token is put into a request.
type Scheme string

// The schemes of sign-in.
const (
	// SchemeBasic sends the token as the password of a user without a name. It is
	// what personal access tokens take; the service takes Entra tokens so too.
	SchemeBasic Scheme = "Basic"
	// SchemeBearer sends the token as it is.
	SchemeBearer Scheme = "Bearer"
)

// TokenSource gives the credential for each request. It is asked before every
// one, so it must be quick, and by several goroutines at once.
type TokenSource interface {
	Token(ctx context.Context) (Secret, error)
}

// RenewableSource is a TokenSource whose tokens end, and which gets the next one by
// itself, ahead of that.
type RenewableSource interface {
	TokenSource
	// Current gives the token that Token gives, and when it ends.
	Current(ctx context.Context) (Secret, time.Time, error)
	// Refused tells that the service does not take a token although it has not ended,
	// such as one that was revoked. It reports whether asking for one again may bring
	// another.
	Refused(token Secret) bool
}

// staticToken is a token that never changes.
type staticToken Secret

// StaticToken is a token that never changes, such as one from the environment.
// Space around it is dropped.
func StaticToken(token Secret) TokenSource {
	return staticToken(strings.TrimSpace(token.Reveal()))
}

// Token gives the token, or an error that says it is empty or unusable.
func (t staticToken) Token(context.Context) (Secret, error) {
	if err := checkToken(string(t)); err != nil {
		return "", fmt.Errorf("the token %w", err)
	}
	return Secret(t), nil
}

// Format keeps the token out of every print of it.
func (t staticToken) Format(f fmt.State, _ rune) { redact(f) }

// maxTokenFile is far above every token (an Entra token takes about 2 KiB) and
// keeps a wrong path, such as a device, from being read into memory.
const maxTokenFile = 64 << 10

// racyAge is how old a file must have been when it was read for its time of
// change to be believed later: a second write within the clock's grain would
// leave the same time.
const racyAge = 2 * time.Second

// fileToken is a token kept in a file.
type fileToken struct {
	path string

	mu     sync.Mutex
	info   os.FileInfo // Of the file that token came from; nil before.
	readAt time.Time
	token  Secret
}

// FileToken is the token in a file, read again whenever the file at that path is
// another one or has changed. Kubernetes replaces the files of a mounted Secret
// by swapping a symbolic link, which shows as another inode.
func FileToken(path string) TokenSource { return &fileToken{path: path} }

// Token gives the token, or an error that names the file and what is wrong.
func (t *fileToken) Token(context.Context) (Secret, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.path)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	if t.unchanged(info) {
		return t.token, nil
	}
	return t.read()
}

func (t *fileToken) unchanged(info os.FileInfo) bool {
	return t.info != nil &&
		os.SameFile(t.info, info) &&
		t.info.Size() == info.Size() &&
		t.info.ModTime().Equal(info.ModTime()) &&
		t.readAt.Sub(info.ModTime()) > racyAge
}

func (t *fileToken) read() (_ Secret, err error) {
	t.info = nil
	file, err := os.Open(t.path)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	// Stat of the open file, so that what is remembered belongs to what is read.
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	readAt := time.Now()
	content, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	if len(content) > maxTokenFile {
		return "", fmt.Errorf("token file %s: over %d bytes long, which no token is", t.path, maxTokenFile)
	}
	token := strings.TrimSpace(strings.TrimPrefix(string(content), "\ufeff"))
	if err := checkToken(token); err != nil {
		return "", fmt.Errorf("token file %s: the token %w", t.path, err)
	}
	t.info, t.readAt, t.token = info, readAt, Secret(token)
	return t.token, nil
}

// Format keeps the token out of every print of the source.
func (t *fileToken) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "token file "+t.path)
}

// checkToken tells what the service would answer with nothing but a sign-in page.
func checkToken(token string) error {
	if token == "" {
		return errors.New("is empty: put the personal access token there")
	}
	if strings.ContainsFunc(token, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errors.New("has white space or control characters inside: put one token there and nothing else")
	}
	return nil
}
