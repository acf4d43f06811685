# Three replicas of Tocsin in three zones of AWS: a machine and a data volume in each, a bucket, and who may talk to whom.
# UNTESTED: nobody has applied this, nor validated it. Read the plan before you apply it. README.md says what to do first.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = { source = "hashicorp/aws", version = "~> 5.0" }
  }
}

provider "aws" {
  region = var.region
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "subnets" {
  description = "One subnet in each of three zones, by the name of the zone."
  type        = map(string) # {eu-central-1a = "subnet-...", eu-central-1b = "subnet-...", eu-central-1c = "subnet-..."}
}

variable "ami" {
  description = "An image of Debian 12 or later, or Ubuntu 24.04 or later, for the architecture of instance_type."
  type        = string
}

variable "instance_type" {
  type    = string
  default = "t3.large"
}

variable "volume_gib" {
  type    = number
  default = 200
}

variable "bucket" {
  description = "Name of the bucket; the same as in the user data."
  type        = string
}

variable "key_parameter" {
  description = "Name of the SecureString in the Parameter Store that holds the cluster key; the same as in the user data."
  type        = string
  default     = "/tocsin/cluster.key"
}

variable "people" {
  description = "Networks that may open the UI and the APIs."
  type        = list(string)
}

variable "user_data" {
  description = "cloud-init/three-zones.yaml with your repository, your bucket, and the lines that fetch the key."
  type        = string
  default     = "three-zones.yaml"
}

data "aws_subnet" "zone" {
  for_each = var.subnets
  id       = each.value
}

locals {
  vpc = values(data.aws_subnet.zone)[0].vpc_id
}

# What replicas say to each other: gossip, gRPC, and the scrapes of each other.
resource "aws_security_group" "replicas" {
  name   = "tocsin"
  vpc_id = local.vpc
  dynamic "ingress" {
    for_each = { gossip-tcp = ["tcp", 9094], gossip-udp = ["udp", 9094], grpc = ["tcp", 10901], http = ["tcp", 9090] }
    content {
      description = ingress.key
      protocol    = ingress.value[0]
      from_port   = ingress.value[1]
      to_port     = ingress.value[1]
      self        = true
    }
  }
  dynamic "ingress" {
    for_each = { ui = 9090, alertmanager = 9093 }
    content {
      description = ingress.key
      protocol    = "tcp"
      from_port   = ingress.value
      to_port     = ingress.value
      cidr_blocks = var.people
    }
  }
  egress {
    description      = "Targets, receivers, the bucket, packages"
    protocol         = "-1"
    from_port        = 0
    to_port          = 0
    cidr_blocks      = ["0.0.0.0/0"]
    ipv6_cidr_blocks = ["::/0"]
  }
}

resource "aws_s3_bucket" "blocks" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "blocks" {
  bucket                  = aws_s3_bucket.blocks.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_iam_role" "replica" {
  name = "tocsin"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

data "aws_caller_identity" "current" {}

resource "aws_iam_role_policy" "replica" {
  role = aws_iam_role.replica.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = ["s3:ListBucket", "s3:GetBucketLocation"], Resource = aws_s3_bucket.blocks.arn },
      { Effect = "Allow", Action = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], Resource = "${aws_s3_bucket.blocks.arn}/*" },
      { Effect = "Allow", Action = "ssm:GetParameter", Resource = "arn:aws:ssm:${var.region}:${data.aws_caller_identity.current.account_id}:parameter${var.key_parameter}" },
    ]
  })
}

resource "aws_iam_instance_profile" "replica" {
  name = "tocsin"
  role = aws_iam_role.replica.name
}

resource "aws_instance" "replica" {
  for_each               = var.subnets
  ami                    = var.ami
  instance_type          = var.instance_type
  subnet_id              = each.value
  vpc_security_group_ids = [aws_security_group.replicas.id]
  iam_instance_profile   = aws_iam_instance_profile.replica.name
  user_data              = file("${path.module}/${var.user_data}") # The same for all three.
  metadata_options {
    http_tokens = "required"
  }
  tags = { Name = "tocsin-${each.key}" }
  # A newer image is taken one machine after the other, with `terraform apply -replace`, not on all three at once.
  lifecycle {
    ignore_changes = [ami, user_data]
  }
}

# A volume outlives its machine: the next one in its zone finds it by its label and goes on with it.
resource "aws_ebs_volume" "data" {
  for_each          = var.subnets
  availability_zone = data.aws_subnet.zone[each.key].availability_zone
  size              = var.volume_gib
  type              = "gp3"
  encrypted         = true
  tags              = { Name = "tocsin-${each.key}" }
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_volume_attachment" "data" {
  for_each                       = var.subnets
  device_name                    = "/dev/sdf"
  instance_id                    = aws_instance.replica[each.key].id
  volume_id                      = aws_ebs_volume.data[each.key].id
  stop_instance_before_detaching = true
}

output "replicas" {
  value = { for zone, i in aws_instance.replica : zone => "http://${i.private_ip}:9090" }
}
