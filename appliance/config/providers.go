package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ncw/swift"
	"github.com/thanos-io/objstore"
	objclient "github.com/thanos-io/objstore/client"
	"github.com/thanos-io/objstore/providers/azure"
	"github.com/thanos-io/objstore/providers/bos"
	"github.com/thanos-io/objstore/providers/cos"
	"github.com/thanos-io/objstore/providers/filesystem"
	"github.com/thanos-io/objstore/providers/gcs"
	"github.com/thanos-io/objstore/providers/obs"
	"github.com/thanos-io/objstore/providers/oci"
	"github.com/thanos-io/objstore/providers/oss"
	"github.com/thanos-io/objstore/providers/s3"
	objswift "github.com/thanos-io/objstore/providers/swift"
	gopkgyaml2 "gopkg.in/yaml.v2"
)

// provider is what we know of one of objstore's.
type provider struct {
	// config makes a pointer to the provider's structure with its defaults. objstore itself reads some of them without
	// refusing unknown fields.
	config func() any
	// secrets are the fields that may be given as NAME_file too.
	secrets []string
	// without says in the manual what holds where they are left out.
	without string
	// noProxy says why proxy_url cannot be used; "" if it can.
	noProxy string
	// env puts in what is left out and stands in the environment; nil where objstore's client does that itself.
	env func(cfg any) error
	// check finds what is wrong with a structure without asking anybody.
	check func(cfg any) error
}

func init() {
	// Every client that objstore makes would write its put_user_metadata into this one map, which those under way read.
	s3.DefaultConfig.PutUserMetadata = nil
}

var providers = map[objstore.ObjProvider]*provider{
	objstore.FILESYSTEM: {
		config:  func() any { return &filesystem.Config{} },
		noProxy: "a FILESYSTEM bucket is not reached over the network; leave the field out",
		check:   builds(objstore.FILESYSTEM),
	},
	objstore.S3: {
		config:  func() any { c := s3.DefaultConfig; return &c },
		secrets: []string{"access_key", "secret_key", "session_token"},
		without: "AWS_ACCESS_KEY_ID and its siblings in the environment, the AWS credentials file, the machine's role; with `aws_sdk_auth: true` whatever the AWS SDK knows",
		check:   checkS3,
	},
	objstore.SWIFT: {
		config:  func() any { c := objswift.DefaultConfig; return &c },
		secrets: []string{"password", "application_credential_secret"},
		without: "without `auth_url` OS_AUTH_URL, OS_PASSWORD and the other OpenStack variables of the environment hold for all that is left out",
		env:     swiftEnvironment,
		check:   checkSwift,
	},
	objstore.GCS: {
		config:  func() any { c := gcs.DefaultConfig; return &c },
		secrets: []string{"service_account"},
		without: "the file that GOOGLE_APPLICATION_CREDENTIALS names, the machine's account",
		check:   checkGCS,
	},
	objstore.AZURE: {
		config:  func() any { c := azure.DefaultConfig; return &c },
		secrets: []string{"client_secret", "storage_account_key", "storage_connection_string"},
		without: "AZURE_CLIENT_ID and its siblings in the environment, the machine's identity",
		check:   checkAzure,
	},
	objstore.COS: {
		config:  func() any { c := cos.DefaultConfig; return &c },
		secrets: []string{"secret_id", "secret_key"},
		without: "required",
		check:   builds(objstore.COS),
	},
	objstore.ALIYUNOSS: {
		config:  func() any { return &oss.Config{} },
		secrets: []string{"access_key_id", "access_key_secret"},
		without: "required",
		check:   builds(objstore.ALIYUNOSS),
	},
	objstore.BOS: {
		config:  func() any { return &bos.Config{} },
		secrets: []string{"access_key", "secret_key"},
		without: "required",
		noProxy: "the client of BOS takes no proxy; leave the field out",
		check:   builds(objstore.BOS),
	},
	objstore.OCI: {
		config:  func() any { c := oci.DefaultConfig; return &c },
		secrets: []string{"privatekey", "passphrase"},
		without: "with `provider: default` the OCI configuration file and its environment variables, with `instance-principal` the machine's identity",
		check:   checkOCI,
	},
	objstore.OBS: {
		config:  func() any { c := obs.DefaultConfig; return &c },
		secrets: []string{"access_key", "secret_key"},
		without: "required",
		noProxy: "the client of OBS takes no proxy_url; leave the field out and set the environment variable HTTPS_PROXY",
		check:   builds(objstore.OBS),
	},
}

func providerNames() []string {
	names := make([]string, 0, len(providers))
	for name := range maps.Keys(providers) {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// discard is a go-kit logger.
type discard struct{}

func (discard) Log(...any) error { return nil }

// builds finds what is wrong by making a client, which asks nobody anything.
func builds(t objstore.ObjProvider) func(any) error {
	return func(cfg any) error {
		b, err := gopkgyaml2.Marshal(objclient.BucketConfig{Type: t, Config: cfg})
		if err != nil {
			return fmt.Errorf("write objstore's configuration: %w", err)
		}
		bkt, err := objclient.NewBucket(discard{}, b, "tocsin", nil)
		if err != nil {
			return errors.New(strings.TrimPrefix(err.Error(), fmt.Sprintf("create %s client: ", t)))
		}
		return bkt.Close()
	}
}

func checkS3(cfg any) error {
	c := cfg.(*s3.Config)
	switch {
	case c.Bucket == "":
		return errors.New("bucket is missing")
	case c.TraceConfig.Enable:
		return errors.New("trace.enable would write credentials to the log")
	}
	return builds(objstore.S3)(c)
}

// checkSwift does not make the client, which logs in.
func checkSwift(cfg any) error {
	c := cfg.(*objswift.Config)
	switch {
	case c.AuthUrl == "":
		return errors.New("auth_url is missing; the environment variable OS_AUTH_URL is not set either")
	case c.ContainerName == "":
		return errors.New("container_name is missing")
	case c.AuthVersion < 0 || c.AuthVersion > 3:
		return fmt.Errorf("auth_version %d: want 1, 2 or 3, or 0 to find it out", c.AuthVersion)
	case c.ChunkSize <= 0:
		return errors.New("large_object_chunk_size must be larger than 0")
	}
	return nil
}

// swiftEnvironment reads OpenStack's variables where auth_url is left out; what is given goes before them.
func swiftEnvironment(cfg any) error {
	c := cfg.(*objswift.Config)
	if c.AuthUrl != "" {
		return nil
	}
	var e swift.Connection
	if err := e.ApplyEnvironment(); err != nil {
		return errors.New("an environment variable of OpenStack's cannot be read") // The error may quote a password.
	}
	for _, f := range []struct {
		field *string
		value string
	}{
		{&c.AuthUrl, e.AuthUrl},
		{&c.Username, e.UserName},
		{&c.UserId, e.UserId},
		{&c.Password, e.ApiKey},
		{&c.DomainId, e.DomainId},
		{&c.DomainName, e.Domain},
		{&c.ApplicationCredentialID, e.ApplicationCredentialId},
		{&c.ApplicationCredentialName, e.ApplicationCredentialName},
		{&c.ApplicationCredentialSecret, e.ApplicationCredentialSecret},
		{&c.ProjectID, e.TenantId},
		{&c.ProjectName, e.Tenant},
		{&c.ProjectDomainID, e.TenantDomainId},
		{&c.ProjectDomainName, e.TenantDomain},
		{&c.RegionName, e.Region},
	} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if c.AuthVersion == 0 {
		c.AuthVersion = e.AuthVersion
	}
	return nil
}

// checkGCS makes the client only where it need not look for credentials: that may ask the network.
func checkGCS(cfg any) error {
	c := cfg.(*gcs.Config)
	switch {
	case c.Bucket == "":
		return errors.New("bucket is missing")
	case c.ServiceAccount == "" || c.UseGRPC:
		return nil
	}
	return builds(objstore.GCS)(c)
}

// checkAzure makes a client that does not look whether the container is there.
func checkAzure(cfg any) error {
	c := *cfg.(*azure.Config)
	c.StorageCreateContainer = false
	return builds(objstore.AZURE)(&c)
}

// checkOCI does not make the client, which asks for the namespace.
func checkOCI(cfg any) error {
	c := cfg.(*oci.Config)
	if c.Bucket == "" {
		return errors.New("bucket is missing")
	}
	switch p := strings.ToLower(c.Provider); p {
	case "default", "instance-principal", "oke-workload-identity":
		return nil
	case "raw":
		for _, name := range []string{"tenancy_ocid", "user_ocid", "region", "fingerprint", "privatekey"} {
			if field(c, name).String() == "" {
				return fmt.Errorf("%s is missing, which provider: raw needs", name)
			}
		}
		return nil
	default:
		return errors.New("provider: want default, instance-principal, raw or oke-workload-identity")
	}
}
