// Package image makes container images from files, without a registry and
// without a container engine, as archives that a container runtime imports.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Spec describes an image.
type Spec struct {
	// Ref is the name under which pods ask for the image, such as "agent:dev".
	// As in a pod, a name without a registry is one of docker.io/library.
	Ref string
	// Base is a tar file of a root file system, such as Debian gives, and the
	// image's first layer. Empty: the image holds nothing but Files.
	Base string
	// Files make up the second layer, in this order; later ones win.
	Files []File
	// User is the numeric user and group, "1000:1000". Empty means root.
	User string
	// Env has the form NAME=value.
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
}

// File is one addition to an image. Of Source, Content, Archive and Dir exactly
// one is given (Content may be empty: then the file is).
type File struct {
	// Path is absolute, inside the image. Directories above it that no File
	// names are made as root's, with mode 0755.
	Path string
	// Source is a file on this machine, or a directory with all below it.
	Source string
	// Content is the file's content.
	Content []byte
	// Archive is a tar file on this machine, gzipped or not, unpacked below Path.
	Archive string
	// Dir makes a directory.
	Dir bool
	// Mode is the permission; 0 means that of Source, and 0644 or 0755 for
	// Content and Dir. What comes from a directory or an archive keeps its own.
	Mode fs.FileMode
	// UID and GID own all of it.
	UID, GID int
}

// The media types of the OCI image specification, version 1.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
	// annotationName tells containerd the full name of an image in an archive.
	annotationName = "io.containerd.image.name"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type imageConfig struct {
	Created      time.Time      `json:"created"`
	Architecture string         `json:"architecture"`
	OS           string         `json:"os"`
	Config       processConfig  `json:"config"`
	RootFS       rootFileSystem `json:"rootfs"`
	History      []historyEntry `json:"history"`
}

type processConfig struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

type rootFileSystem struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// historyEntry tells of one layer. Tools that build on the image count them.
type historyEntry struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// epoch is the time of everything in an image, so that equal content gives
// equal digests.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// FullRef gives ref as the runtime stores it: with registry and tag.
func FullRef(ref string) (string, error) {
	if ref == "" || strings.ContainsAny(ref, " \t\n@") {
		return "", fmt.Errorf("image reference %q: want NAME:TAG, with or without a registry, and no digest", ref)
	}
	first, _, several := strings.Cut(ref, "/")
	if !several {
		ref = "docker.io/library/" + ref
	} else if !strings.ContainsAny(first, ".:") && first != "localhost" {
		ref = "docker.io/" + ref
	}
	if !strings.Contains(path.Base(ref), ":") {
		ref += ":latest"
	}
	return ref, nil
}

// Write makes the image as an OCI archive (a tar of an OCI image layout, layers
// uncompressed) in the file at target. A file that is there is replaced; on
// error there is none.
func Write(ctx context.Context, target string, spec Spec) (err error) {
	ref, err := FullRef(spec.Ref)
	if err != nil {
		return err
	}
	if err := validate(spec); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	layer, err := buildLayer(ctx, filepath.Dir(target), spec.Files)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	defer func() { _ = os.Remove(layer) }()
	out, err := os.CreateTemp(filepath.Dir(target), ".image-")
	if err != nil {
		return fmt.Errorf("image %s: making its archive: %w", ref, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	err = writeLayout(ctx, out, ref, layer, spec)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	if err := os.Rename(out.Name(), target); err != nil {
		return fmt.Errorf("image %s: keeping its archive: %w", ref, err)
	}
	return nil
}

func validate(spec Spec) error {
	var wrong []error
	for _, f := range spec.Files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) == "/" && f.Archive == "" {
			wrong = append(wrong, fmt.Errorf("file %q: want an absolute path below /", f.Path))
		}
		kinds := 0
		for _, given := range []bool{f.Source != "", f.Content != nil, f.Archive != "", f.Dir} {
			if given {
				kinds++
			}
		}
		if kinds > 1 {
			wrong = append(wrong, fmt.Errorf("file %q: want one of Source, Content, Archive and Dir, not several", f.Path))
		}
	}
	return errors.Join(wrong...)
}

func writeLayout(ctx context.Context, out io.Writer, ref, layer string, spec Spec) error {
	layout := tar.NewWriter(out)
	if err := addBlob(layout, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	var layers []descriptor
	for _, file := range []string{spec.Base, layer} {
		if file == "" {
			continue
		}
		made, err := addLayer(ctx, layout, file)
		if err != nil {
			return err
		}
		layers = append(layers, made)
	}
	config := imageConfig{
		Created: epoch(), Architecture: runtime.GOARCH, OS: "linux",
		Config: processConfig{User: spec.User, Env: environment(spec.Env), Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, WorkingDir: spec.WorkingDir},
		RootFS: rootFileSystem{Type: "layers"},
	}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
		config.History = append(config.History, historyEntry{Created: epoch(), CreatedBy: "test/cluster/image"})
	}
	configured, err := addJSON(layout, mediaConfig, config)
	if err != nil {
		return err
	}
	manifest, err := addJSON(layout, mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": configured, "layers": layers,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{annotationName: ref, "org.opencontainers.image.ref.name": ref}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{manifest}})
	if err != nil {
		return fmt.Errorf("encoding the index: %w", err)
	}
	if err := addBlob(layout, "index.json", index); err != nil {
		return err
	}
	if err := layout.Close(); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	return nil
}

func environment(given []string) []string {
	for _, entry := range given {
		if strings.HasPrefix(entry, "PATH=") {
			return given
		}
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, given...)
}

func addJSON(layout *tar.Writer, media string, value any) (descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, fmt.Errorf("encoding %s: %w", media, err)
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	if err := addBlob(layout, "blobs/sha256/"+digest, text); err != nil {
		return descriptor{}, err
	}
	return descriptor{MediaType: media, Digest: "sha256:" + digest, Size: int64(len(text))}, nil
}

func addBlob(layout *tar.Writer, name string, content []byte) error {
	header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: epoch(), Format: tar.FormatPAX}
	if err := layout.WriteHeader(header); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := layout.Write(content); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

func addLayer(ctx context.Context, layout *tar.Writer, file string) (descriptor, error) {
	in, err := os.Open(file)
	if err != nil {
		return descriptor{}, fmt.Errorf("opening a layer: %w", err)
	}
	defer func() { _ = in.Close() }()
	sum := sha256.New()
	size, err := copyContext(ctx, sum, in)
	if err != nil {
		return descriptor{}, fmt.Errorf("reading layer %s: %w", file, err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return descriptor{}, fmt.Errorf("reading layer %s again: %w", file, err)
	}
	digest := digestOf(sum)
	header := &tar.Header{Name: "blobs/sha256/" + digest, Mode: 0o644, Size: size, ModTime: epoch(), Format: tar.FormatPAX}
	if err := layout.WriteHeader(header); err != nil {
		return descriptor{}, fmt.Errorf("writing layer %s: %w", file, err)
	}
	if _, err := copyContext(ctx, layout, in); err != nil {
		return descriptor{}, fmt.Errorf("writing layer %s: %w", file, err)
	}
	return descriptor{MediaType: mediaLayer, Digest: "sha256:" + digest, Size: size}, nil
}

func digestOf(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

// copyContext copies until ctx ends.
func copyContext(ctx context.Context, out io.Writer, in io.Reader) (int64, error) {
	return io.Copy(out, contextReader{ctx, in})
}

type contextReader struct {
	//nolint:containedctx // Lives for one copy, whose limit it is.
	ctx context.Context
	in  io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}

// gunzip reads a gzipped stream unpacked, and any other as it is.
func gunzip(in io.ReadSeeker) (io.Reader, error) {
	var magic [2]byte
	n, err := io.ReadFull(in, magic[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if n == 2 && bytes.Equal(magic[:], []byte{0x1f, 0x8b}) {
		return gzip.NewReader(in)
	}
	return in, nil
}
