package env

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/image"
)

// machineCA is where Debian has what a machine trusts.
const machineCA = "/etc/ssl/certs/ca-certificates.crt"

// standIns makes what stands in for the images that the Dockerfiles start from, as no registry
// is asked for anything: Debian packages in the place of Ubuntu's image, and this machine's Go
// in that of golang's.
type standIns struct {
	builder  *ImageBuilder
	programs cluster.Binaries
	bases    string
	progress io.Writer
}

func (s *standIns) make(ctx context.Context, ref string) (string, error) {
	name, _, _ := strings.Cut(ref, ":")
	switch name {
	case "docker.io/library/golang":
		return s.golang(ctx, ref)
	case "docker.io/library/ubuntu":
		return s.ubuntu(ctx, ref)
	case "gcr.io/distroless/static-debian13":
		return s.distroless(ctx, ref)
	case "registry.k8s.io/kubectl":
		kubectl := s.programs.Kubectl() // Its path has the hash of what it is built from.
		return s.builder.StandIn(ctx, kubectl, image.Spec{Ref: ref, Files: []image.File{{Path: "/bin/kubectl", Source: kubectl, Mode: 0o755}}, Entrypoint: []string{"/bin/kubectl"}})
	default:
		return "", fmt.Errorf("nothing stands in for the image %s: add it to test/e2e/env", ref)
	}
}

// golang is Debian with this machine's Go, and what this machine trusts, in case that its way
// to the modules is its own.
func (s *standIns) golang(ctx context.Context, ref string) (string, error) {
	base, err := image.Debian{Cache: s.bases, Packages: image.AgentPackages(), Progress: s.progress}.Base(ctx)
	if err != nil {
		return "", err
	}
	values := make([]string, 3)
	for i, name := range []string{"GOROOT", "GOVERSION", "GOPROXY"} {
		if values[i], err = goEnv(ctx, name); err != nil {
			return "", err
		}
	}
	goroot, version, proxy := values[0], values[1], values[2]
	trusted, err := trusted()
	if err != nil {
		return "", err
	}
	return s.builder.StandIn(ctx, strings.Join([]string{base, version, proxy, digest(trusted), "shared cache"}, "\n"), image.Spec{
		Ref: ref, Base: base, WorkingDir: "/go",
		Files: []image.File{{Path: "/usr/local/go", Source: goroot}, {Path: machineCA, Content: trusted}, {Path: "/go", Dir: true, Mode: 0o1777}},
		Env: []string{
			"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOPATH=/go", "GOTOOLCHAIN=local",
			"GOPROXY=file://" + modulesPlace + "," + proxy, "GOCACHE=" + compiledPlace,
		},
	})
}

// ubuntu is Debian with the user that Ubuntu's image has.
func (s *standIns) ubuntu(ctx context.Context, ref string) (string, error) {
	base, err := image.Debian{Cache: s.bases, Progress: s.progress}.Base(ctx)
	if err != nil {
		return "", err
	}
	spec := image.Spec{Ref: ref, Base: base, Cmd: []string{"/bin/bash"}}
	for file, line := range map[string]string{
		"etc/passwd": "ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n", "etc/group": "ubuntu:x:1000:\n", "etc/shadow": "ubuntu:!:19000:0:99999:7:::\n", "etc/gshadow": "ubuntu:!::\n",
	} {
		before, err := fileOf(base, file)
		if err != nil {
			return "", err
		}
		spec.Files = append(spec.Files, image.File{Path: "/" + file, Content: append(before, line...), Mode: 0o644})
	}
	spec.Files = append(spec.Files, image.File{Path: "/home/ubuntu", Dir: true, UID: 1000, GID: 1000},
		// As in the images of both distributions: nobody needs half an installation after a crash.
		image.File{Path: "/etc/dpkg/dpkg.cfg.d/docker-apt-speedup", Content: []byte("force-unsafe-io\n")})
	return s.builder.StandIn(ctx, base+" without syncing", spec)
}

// distroless is what the image of static programs has: two users, what is trusted, and a
// place for temporary files.
func (s *standIns) distroless(ctx context.Context, ref string) (string, error) {
	trusted, err := trusted()
	if err != nil {
		return "", err
	}
	return s.builder.StandIn(ctx, digest(trusted), image.Spec{
		Ref: ref, User: "65532", WorkingDir: "/home/nonroot",
		Files: []image.File{
			{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")},
			{Path: "/etc/group", Content: []byte("root:x:0:\nnonroot:x:65532:\n")},
			{Path: machineCA, Content: trusted},
			{Path: "/home/nonroot", Dir: true, Mode: 0o700, UID: 65532, GID: 65532},
			{Path: "/tmp", Dir: true, Mode: 0o1777},
		},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE=" + machineCA},
	})
}

// trusted gives what this machine trusts.
func trusted() ([]byte, error) {
	authorities, err := os.ReadFile(machineCA)
	if err != nil {
		return nil, fmt.Errorf("what this machine trusts: %w", err)
	}
	return authorities, nil
}

// fileOf gives a file out of a tar file.
func fileOf(archive, name string) ([]byte, error) {
	in, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s has no file %s", archive, name)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", archive, err)
		}
		if strings.TrimPrefix(header.Name, "./") == name {
			return io.ReadAll(r)
		}
	}
}
