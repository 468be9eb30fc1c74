# ruby sidekiq.rb CASE PORT COUNT: pushes or jobs per second of Sidekiq, in one process of ten
# threads, its default; prints one number.
require 'sidekiq'
require 'sidekiq/launcher'
require 'logger'

kind, port, count = ARGV[0], ARGV[1].to_i, ARGV[2].to_i
TEXT = 'a payload of about a hundred bytes, which is what most jobs carry around'.freeze
DONE = Queue.new
REDIS = { url: "redis://127.0.0.1:#{port}/0" }.freeze
Sidekiq.configure_client { |config| config.redis = REDIS }
Sidekiq.redis(&:flushall)
Sidekiq.logger.level = Logger::ERROR
# Debian's client warns of calls in Debian's Sidekiq, at every job.
Redis.silence_deprecations = true if Redis.respond_to?(:silence_deprecations=)

class Small
  include Sidekiq::Worker
  @count = 0
  @lock = Mutex.new
  class << self
    attr_accessor :goal

    def step
      @lock.synchronize { DONE << true if (@count += 1) == goal }
    end
  end

  def perform(job)
    raise if job['n'] + job['text'].length < 0
    Small.step
  end
end
Small.goal = count

def job(number)
  { 'n' => number, 'text' => TEXT }
end

def bulk(count)
  (0...count).each_slice(1000) { |part| Sidekiq::Client.push_bulk('class' => Small, 'args' => part.map { |n| [job(n)] }) }
end

now = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
start = now.call
case kind
when 'push_one' then count.times { |n| Small.perform_async(job(n)) }
when 'push_bulk' then bulk(count)
else
  bulk(count)
  launcher = Sidekiq::Launcher.new(Sidekiq.options.merge(queues: ['default'], concurrency: 10, timeout: 1))
  start = now.call
  launcher.run
  Timeout.timeout(60) { DONE.pop }
end
puts count / (now.call - start)
$stdout.flush
exit!(0)
