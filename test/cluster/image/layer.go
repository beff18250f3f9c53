package image

import (
	"archive/tar"
	"bytes"
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

// layerWriter writes the files of one layer.
type layerWriter struct {
	ctx context.Context //nolint:containedctx // Lives for one layer, whose limit it is.
	tar *tar.Writer
}

// buildLayer writes the layer of files into a temporary file in dir.
func buildLayer(ctx context.Context, dir string, files []File) (name string, err error) {
	out, err := os.CreateTemp(dir, ".layer-")
	if err != nil {
		return "", fmt.Errorf("making a layer: %w", err)
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	w := layerWriter{ctx: ctx, tar: tar.NewWriter(out)}
	for _, file := range files {
		if err := w.add(file); err != nil {
			return "", fmt.Errorf("adding %s: %w", file.Path, err)
		}
	}
	if err := w.tar.Close(); err != nil {
		return "", fmt.Errorf("writing a layer: %w", err)
	}
	return out.Name(), nil
}

func (w layerWriter) add(f File) error {
	switch {
	case f.Dir:
		return w.header(f, &tar.Header{Typeflag: tar.TypeDir, Name: inTar(f.Path) + "/", Mode: mode(f.Mode, 0o755)})
	case f.Archive != "":
		return w.archive(f)
	case f.Source != "":
		return w.source(f)
	default:
		header := &tar.Header{Typeflag: tar.TypeReg, Name: inTar(f.Path), Mode: mode(f.Mode, 0o644), Size: int64(len(f.Content))}
		return w.content(f, header, bytes.NewReader(f.Content))
	}
}

func (w layerWriter) source(f File) error {
	info, err := os.Stat(f.Source)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return w.file(f, f.Path, f.Source, info, mode(f.Mode, info.Mode().Perm()))
	}
	return filepath.WalkDir(f.Source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(f.Source, name)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return w.file(f, path.Join(f.Path, filepath.ToSlash(relative)), name, info, int64(info.Mode().Perm()))
	})
}

// file adds what is at name on this machine as target.
func (w layerWriter) file(f File, target, name string, info fs.FileInfo, permission int64) error {
	header := &tar.Header{Name: inTar(target), Mode: permission}
	switch {
	case info.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		return w.header(f, header)
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(name)
		if err != nil {
			return err
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, link
		return w.header(f, header)
	case info.Mode().IsRegular():
		in, err := os.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		return w.content(f, header, in)
	default:
		return fmt.Errorf("%s is neither a file nor a directory nor a link", name)
	}
}

// archive unpacks a tar file below f.Path.
func (w layerWriter) archive(f File) error {
	in, err := os.Open(f.Archive)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	unpacked, err := gunzip(in)
	if err != nil {
		return fmt.Errorf("reading %s: %w", f.Archive, err)
	}
	archive := tar.NewReader(unpacked)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", f.Archive, err)
		}
		name := path.Join(f.Path, path.Join("/", entry.Name))
		header := &tar.Header{Typeflag: entry.Typeflag, Name: inTar(name), Linkname: entry.Linkname, Mode: entry.Mode, Size: entry.Size}
		switch entry.Typeflag {
		case tar.TypeDir:
			if inTar(name) == "" {
				continue
			}
			header.Name += "/"
			err = w.header(f, header)
		case tar.TypeReg:
			err = w.content(f, header, archive)
		case tar.TypeSymlink:
			err = w.header(f, header)
		case tar.TypeLink:
			// Names another entry of the archive, so it moves with it.
			header.Linkname = inTar(path.Join(f.Path, path.Join("/", entry.Linkname)))
			err = w.header(f, header)
		default:
			err = fmt.Errorf("%s: entry %s has a kind (%q) that an image layer here does not take", f.Archive, entry.Name, entry.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

func (w layerWriter) content(f File, header *tar.Header, in io.Reader) error {
	if err := w.header(f, header); err != nil {
		return err
	}
	_, err := copyContext(w.ctx, w.tar, in)
	return err
}

// header writes an entry. Directories above it that have none of their own are
// those of the layer below, or made by the runtime.
func (w layerWriter) header(f File, header *tar.Header) error {
	header.ModTime, header.Uid, header.Gid, header.Format = epoch(), f.UID, f.GID, tar.FormatPAX
	return w.tar.WriteHeader(header)
}

func inTar(name string) string { return strings.TrimPrefix(path.Clean(name), "/") }

func mode(given, otherwise fs.FileMode) int64 {
	if given == 0 {
		given = otherwise
	}
	bits := int64(given.Perm())
	if given&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if given&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if given&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
