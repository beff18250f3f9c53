// Package archive packs and unpacks the agent's tarball.
package archive

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// File is one regular file of a tarball.
type File struct {
	Name    string // Relative, with slashes.
	Mode    fs.FileMode
	Content []byte
}

// Pack writes files in the order given, together with their folders, as a
// compressed tarball. The same files make the same bytes.
func Pack(w io.Writer, files []File) error {
	compressed, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	tarball := tar.NewWriter(compressed)
	folders := map[string]bool{".": true}
	for _, file := range files {
		if dir := filepath.Dir(file.Name); !folders[dir] {
			folders[dir] = true
			header := &tar.Header{Typeflag: tar.TypeDir, Name: "./" + dir + "/", Mode: 0o755, Format: tar.FormatUSTAR}
			if err := tarball.WriteHeader(header); err != nil {
				return fmt.Errorf("pack %s: %w", dir, err)
			}
		}
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: "./" + file.Name, Mode: int64(file.Mode.Perm()),
			Size: int64(len(file.Content)), Format: tar.FormatUSTAR,
		}
		if err := tarball.WriteHeader(header); err != nil {
			return fmt.Errorf("pack %s: %w", file.Name, err)
		}
		if _, err := tarball.Write(file.Content); err != nil {
			return fmt.Errorf("pack %s: %w", file.Name, err)
		}
	}
	return errors.Join(tarball.Close(), compressed.Close())
}

// Unpack writes the folders and regular files of a compressed tarball below dir.
// An entry that would land elsewhere, or is of another type, is an error.
func Unpack(r io.Reader, dir string) error {
	compressed, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("unpack: not a compressed tarball: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = root.Close() }()
	tarball := tar.NewReader(compressed)
	for {
		header, err := tarball.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		name := filepath.Clean(strings.TrimPrefix(header.Name, "./"))
		if !filepath.IsLocal(name) {
			return fmt.Errorf("unpack: entry %q leads out of the folder", header.Name)
		}
		switch header.Typeflag {
		case tar.TypeDir:
			if err := root.MkdirAll(name, 0o755); err != nil {
				return fmt.Errorf("unpack %s: %w", name, err)
			}
		case tar.TypeReg:
			if err := writeFile(root, name, fs.FileMode(header.Mode).Perm(), tarball); err != nil {
				return fmt.Errorf("unpack %s: %w", name, err)
			}
		default:
			return fmt.Errorf("unpack: entry %q is neither a folder nor a file", header.Name)
		}
	}
}

func writeFile(root *os.Root, name string, mode fs.FileMode, content io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	file, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}
