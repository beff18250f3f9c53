package agent

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of a package. The agent's has about 5,000 entries and 0.8 GB.
const (
	mostEntries = 200_000
	mostBytes   = 8 << 30
)

// unpackFile unpacks a gzipped tar archive into a folder.
func unpackFile(ctx context.Context, archive, into string) (err error) {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return unpack(ctx, file, into)
}

// unpack unpacks a gzipped tar stream into a folder. An entry that would come to
// lie outside of it, a link that points outside, a device, and an archive beyond all
// proportion are errors. All writing goes through an os.Root, so that not even a
// link made by an earlier entry leads out.
func unpack(ctx context.Context, r io.Reader, into string) (err error) {
	root, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	zipped, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("not a gzip file: %w", err)
	}
	reader := tar.NewReader(zipped)
	left := int64(mostBytes)
	for range mostEntries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if left -= header.Size; left < 0 {
			return fmt.Errorf("the archive holds more than %d GiB", mostBytes>>30)
		}
		if err := unpackEntry(root, header, reader); err != nil {
			return fmt.Errorf("entry %q: %w", header.Name, err)
		}
	}
	return fmt.Errorf("the archive has more than %d entries", mostEntries)
}

func unpackEntry(root *os.Root, header *tar.Header, content io.Reader) error {
	name := path.Clean(header.Name)
	if name == "." {
		return nil
	}
	if !filepath.IsLocal(name) {
		return errors.New("leads out of the folder")
	}
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		return unpackRegular(root, name, header.FileInfo().Mode().Perm(), content)
	case tar.TypeSymlink:
		target := path.Join(path.Dir(name), header.Linkname)
		if strings.HasPrefix(header.Linkname, "/") || !filepath.IsLocal(target) {
			return fmt.Errorf("links to %q, out of the folder", header.Linkname)
		}
		return root.Symlink(header.Linkname, name)
	case tar.TypeLink:
		if !filepath.IsLocal(path.Clean(header.Linkname)) {
			return fmt.Errorf("links to %q, out of the folder", header.Linkname)
		}
		return root.Link(path.Clean(header.Linkname), name)
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fmt.Errorf("type %q has no place in an agent package", header.Typeflag)
	}
}

// unpackRegular writes one file, always writable by its owner, for the agent
// replaces its own files, and never with more than permission bits.
func unpackRegular(root *os.Root, name string, mode fs.FileMode, content io.Reader) (err error) {
	file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := io.Copy(file, content); err != nil {
		return err
	}
	return file.Chmod(mode | 0o600)
}
