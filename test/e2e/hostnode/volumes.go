package hostnode

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigName is the file beside a pod's token by which kubectl finds the
// cluster: a process here has no /var/run/secrets of its own.
const kubeconfigName = "kubeconfig"

// makeVolumes makes the pod's directories and fills them.
func (p *pod) makeVolumes(ctx context.Context) error {
	for _, dir := range []string{"home", "termination", "volumes", "image"} {
		if err := os.MkdirAll(filepath.Join(p.dir, dir), 0o700); err != nil {
			return fmt.Errorf("directory of the pod: %w", err)
		}
	}
	for inside, source := range p.node.options.Image {
		target := p.imageDir(inside)
		if err := os.RemoveAll(target); err != nil {
			return fmt.Errorf("image directory %s: %w", inside, err)
		}
		if err := os.CopyFS(target, os.DirFS(source)); err != nil {
			return fmt.Errorf("image directory %s: %w", inside, err)
		}
	}
	for i := range p.object.Spec.Volumes {
		volume := &p.object.Spec.Volumes[i]
		dir := filepath.Join(p.dir, "volumes", volume.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("volume %q: %w", volume.Name, err)
		}
		files, err := p.volumeFiles(ctx, volume)
		if err != nil {
			return fmt.Errorf("volume %q: %w", volume.Name, err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), content, 0o600); err != nil {
				return fmt.Errorf("volume %q: %w", volume.Name, err)
			}
		}
		p.volumes[volume.Name] = dir
	}
	return nil
}

// refreshEvery is how often mounted Secrets are compared with what they are by now: as on the
// real node of the tests, whose kubelet is set to that.
const refreshEvery = 10 * time.Second

// refreshSecrets shows changed Secrets in their volumes until the context ends. One that can't be
// read stays as it is, as with a kubelet.
func (p *pod) refreshSecrets(ctx context.Context) {
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for i := range p.object.Spec.Volumes {
			volume := &p.object.Spec.Volumes[i]
			if volume.Secret == nil {
				continue
			}
			files, err := p.secret(ctx, volume.Secret.SecretName, volume.Secret.Items)
			if err != nil {
				continue
			}
			for name, content := range files {
				if err := replaceFile(filepath.Join(p.volumes[volume.Name], filepath.Base(name)), content); err != nil {
					p.node.options.Problem(fmt.Errorf("refresh volume %q of pod %s: %w", volume.Name, p.object.Name, err))
				}
			}
		}
	}
}

// replaceFile changes a file as a whole, if it is to be another.
func replaceFile(path string, content []byte) error {
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, content) {
		return nil
	}
	next := path + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// imageDir is the pod's copy of a directory of the image.
func (p *pod) imageDir(inside string) string {
	return filepath.Join(p.dir, "image", filepath.FromSlash(inside))
}

// volumeFiles gives what a volume holds at the start, by name.
func (p *pod) volumeFiles(ctx context.Context, volume *corev1.Volume) (map[string][]byte, error) {
	switch {
	case volume.EmptyDir != nil:
		return nil, nil
	case volume.Secret != nil:
		return p.secret(ctx, volume.Secret.SecretName, volume.Secret.Items)
	case volume.ConfigMap != nil:
		return p.configMap(ctx, volume.ConfigMap.Name, volume.ConfigMap.Items)
	case volume.Projected != nil:
		return p.projected(ctx, volume.Projected.Sources)
	default:
		return nil, fmt.Errorf("only emptyDir, Secret, ConfigMap and projected volumes are known on this node")
	}
}

func (p *pod) secret(ctx context.Context, name string, items []corev1.KeyToPath) (map[string][]byte, error) {
	secret, err := p.node.client.CoreV1().Secrets(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("secret %q: %w", name, err)
	}
	return selected(secret.Data, items)
}

func (p *pod) configMap(ctx context.Context, name string, items []corev1.KeyToPath) (map[string][]byte, error) {
	configMap, err := p.node.client.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("configmap %q: %w", name, err)
	}
	data := maps.Clone(configMap.BinaryData)
	if data == nil {
		data = map[string][]byte{}
	}
	for key, value := range configMap.Data {
		data[key] = []byte(value)
	}
	return selected(data, items)
}

// selected picks keys and gives them their names; without items all are taken.
func selected(data map[string][]byte, items []corev1.KeyToPath) (map[string][]byte, error) {
	if len(items) == 0 {
		return data, nil
	}
	files := map[string][]byte{}
	for _, item := range items {
		value, found := data[item.Key]
		if !found {
			return nil, fmt.Errorf("references non-existent key: %s", item.Key)
		}
		files[item.Path] = value
	}
	return files, nil
}

func (p *pod) projected(ctx context.Context, sources []corev1.VolumeProjection) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, source := range sources {
		var more map[string][]byte
		var err error
		switch {
		case source.ServiceAccountToken != nil:
			more, err = p.accountToken(ctx, source.ServiceAccountToken)
		case source.ConfigMap != nil:
			more, err = p.configMap(ctx, source.ConfigMap.Name, source.ConfigMap.Items)
		case source.Secret != nil:
			more, err = p.secret(ctx, source.Secret.Name, source.Secret.Items)
		case source.DownwardAPI != nil:
			more, err = p.downward(source.DownwardAPI.Items)
		default:
			err = fmt.Errorf("a projection of this kind is not known on this node")
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(files, more)
	}
	return files, nil
}

// accountToken gives the token of the pod's ServiceAccount, bound to the pod,
// and a kubeconfig that uses it.
func (p *pod) accountToken(ctx context.Context, projection *corev1.ServiceAccountTokenProjection) (map[string][]byte, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: projection.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.object.Name, UID: p.object.UID},
	}}
	if projection.Audience != "" {
		request.Spec.Audiences = []string{projection.Audience}
	}
	account := p.object.Spec.ServiceAccountName
	answer, err := p.node.client.CoreV1().ServiceAccounts(p.object.Namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token of ServiceAccount %q: %w", account, err)
	}
	server := p.node.options.Config
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"cluster": {Server: server.Host, CertificateAuthorityData: server.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"account": {Token: answer.Status.Token}},
		Contexts:       map[string]*clientcmdapi.Context{"pod": {Cluster: "cluster", AuthInfo: "account", Namespace: p.object.Namespace}},
		CurrentContext: "pod",
	}
	text, err := clientcmd.Write(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig of ServiceAccount %q: %w", account, err)
	}
	return map[string][]byte{projection.Path: []byte(answer.Status.Token), kubeconfigName: text}, nil
}

func (p *pod) downward(items []corev1.DownwardAPIVolumeFile) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, fmt.Errorf("downward API %q: only fieldRef is known on this node", item.Path)
		}
		value, err := p.field(item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		files[item.Path] = []byte(value)
	}
	return files, nil
}

func (p *pod) field(name string) (string, error) {
	if label, found := strings.CutPrefix(name, "metadata.labels['"); found {
		return p.object.Labels[strings.TrimSuffix(label, "']")], nil
	}
	switch name {
	case "metadata.name":
		return p.object.Name, nil
	case "metadata.namespace":
		return p.object.Namespace, nil
	case "metadata.uid":
		return string(p.object.UID), nil
	case "spec.nodeName":
		return p.node.options.Name, nil
	case "spec.serviceAccountName":
		return p.object.Spec.ServiceAccountName, nil
	default:
		return "", fmt.Errorf("field %q is not known on this node", name)
	}
}

// environment is what the container's processes see: the node's, the
// container's with paths and ports as they are here, and where kubectl finds the
// pod's account if the container mounts its token.
func (c *container) environment() ([]string, error) {
	if len(c.spec.EnvFrom) > 0 {
		return nil, fmt.Errorf("container %s: envFrom is not known on this node", c.spec.Name)
	}
	environment := append([]string{"PATH=" + c.pod.node.options.Path, "HOME=" + c.home(), "HOSTNAME=" + c.pod.object.Name}, c.pod.node.options.Environment...)
	for _, variable := range c.spec.Env {
		value := strings.ReplaceAll(variable.Value, "$$(", "$(")
		if variable.ValueFrom != nil {
			if variable.ValueFrom.FieldRef == nil {
				return nil, fmt.Errorf("container %s: variable %s: only fieldRef is known on this node", c.spec.Name, variable.Name)
			}
			field, err := c.pod.field(variable.ValueFrom.FieldRef.FieldPath)
			if err != nil {
				return nil, fmt.Errorf("container %s: variable %s: %w", c.spec.Name, variable.Name, err)
			}
			value = field
		}
		environment = append(environment, variable.Name+"="+c.here(value))
	}
	for _, mount := range c.spec.VolumeMounts {
		config := filepath.Join(c.pod.volumes[mount.Name], kubeconfigName)
		if _, err := os.Stat(config); err == nil {
			environment = append(environment, "KUBECONFIG="+config)
		}
	}
	return environment, nil
}

// here gives a value of the environment as it must read on this machine: a path
// in a volume, in the image or of the termination message, or a probed port.
func (c *container) here(value string) string {
	if value != "" && value == c.spec.TerminationMessagePath {
		return c.terminationLog()
	}
	if port, err := strconv.ParseInt(strings.TrimPrefix(value, ":"), 10, 32); err == nil && strings.HasPrefix(value, ":") {
		if address, found := c.ports[int32(port)]; found {
			return address
		}
	}
	places := map[string]string{}
	for inside := range c.pod.node.options.Image {
		places[path.Clean(inside)] = c.pod.imageDir(inside)
	}
	for _, mount := range c.spec.VolumeMounts {
		places[path.Clean(mount.MountPath)] = filepath.Join(c.pod.volumes[mount.Name], filepath.FromSlash(mount.SubPath))
	}
	// The longest path is the nearest mount.
	for _, inside := range slices.Backward(slices.Sorted(maps.Keys(places))) {
		if value == inside {
			return places[inside]
		}
		if rest, found := strings.CutPrefix(value, inside+"/"); found {
			return filepath.Join(places[inside], filepath.FromSlash(rest))
		}
	}
	return value
}
