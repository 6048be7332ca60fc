# Hashes, arrays, strings, sorting, regular expressions, and a child that goes on with a copy. Prints one line that depends on all.
use strict;
use warnings;
use Digest::MD5 qw(md5_hex);

my $state = 1;
sub next_number { $state = ($state * 1103515245 + 12345) % 2147483648; return $state % $_[0]; }

my %table;
for my $i (1 .. 60000) {
    $table{"key" . next_number(20000)} = [map { $_ * $i } 1 .. 1 + next_number(8)];
    delete $table{"key" . next_number(20000)} if $i % 5 == 0;
}
my $text = join ",", map { "$_=@{$table{$_}}" } sort keys %table;
my $digest = md5_hex($text);
(my $changed = $text) =~ s/(\d+)/<$1>/g;
$digest = md5_hex($digest . $changed);
my @large = map { "x" x (1 << $_) } 10 .. 22;
$digest = md5_hex($digest . join "", @large);
undef @large;

pipe(my $reader, my $writer) or die;
my $child = fork() // die;
if ($child == 0) {
    $table{"child$_"} = "y" x next_number(4000) for 1 .. 3000;
    print $writer md5_hex(join ",", map { ref $table{$_} ? "@{$table{$_}}" : $table{$_} } sort keys %table);
    close $writer;
    exit 0;
}
close $writer;
my $answer = <$reader>;
waitpid $child, 0;
die "child failed" if $?;
print md5_hex($digest . $answer), "\n";
